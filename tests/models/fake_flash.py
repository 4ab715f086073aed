"""A stand-in for ``aten::_flash_attention_forward`` on CUDA: refuses what the real operator refuses, computes the rest.

Its schema is torch's own (or, to be an older torch, that without newer arguments), and its refusals are those of
FlashAttention 2's ``mha_varlen_fwd``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from dualpath.models.kernels.plain import PlainKernels

REAL = torch.ops.aten._flash_attention_forward.default._schema
SINCE_2_12 = {"block_table", "num_splits"}


class FakeFlash:
    """Attention of one sequence or more, aligned with the last key."""

    def __init__(self, *, is_old: bool = False, wrong: bool = False, out_of_memory: bool = False) -> None:
        arguments = [a for a in REAL.arguments if not (is_old and a.name in SINCE_2_12)]
        self._schema = SimpleNamespace(arguments=arguments)
        self.wrong, self.out_of_memory = wrong, out_of_memory
        self.num_calls = 0

    def __call__(self, *positional: Any, **named: Any) -> tuple[torch.Tensor, ...]:
        self.num_calls += 1
        a = self._bind(positional, named)
        q, k, v, cu_q, cu_k = a["query"], a["key"], a["value"], a["cum_seq_q"], a["cum_seq_k"]
        if self.out_of_memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self._refuse(q, k, v, cu_q, cu_k, a)
        outs, lses = [], []
        for i in range(len(cu_q) - 1):
            part = q[cu_q[i] : cu_q[i + 1]].transpose(0, 1)
            keys, values = (t[cu_k[i] : cu_k[i + 1]] for t in (k, v))
            out, lse = self._attend(part, keys, values, a)
            outs.append(out + 1 if self.wrong else out)
            lses.append(lse)
        empty = torch.empty(0)
        return torch.cat(outs), torch.cat(lses).transpose(0, 1), empty, empty, empty

    def _bind(self, positional: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        names = [argument.name for argument in self._schema.arguments]
        for name in named:
            if name not in names:
                raise TypeError(f"_flash_attention_forward() got an unexpected keyword argument {name!r}")
        return dict.fromkeys(names) | dict(zip(names, positional, strict=False)) | named

    def _refuse(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: torch.Tensor, cu_k: torch.Tensor, a: dict
    ) -> None:
        _check((cu_q is None) == (cu_k is None), "cumulative_sequence_length_q and k must be both set or both not set")
        _check(q.dtype in (torch.float16, torch.bfloat16), "FlashAttention only support fp16 and bf16 data type")
        _check(q.dtype == k.dtype == v.dtype, "query and key must have the same dtype")
        _check(cu_q.dtype == cu_k.dtype == torch.int32, "cu_seqlens_q must have dtype int32")
        _check(all(t.stride(-1) == 1 for t in (q, k, v)), "Input tensor must have contiguous last dimension")
        _check(q.shape[-1] <= 256, "FlashAttention forward only supports head dimension at most 256")
        _check(q.shape[-1] % 8 == 0, "query, key, value, and out tensors must have head_size multiple of 8")
        _check(q.shape[1] % k.shape[1] == 0, "Number of heads in key/value must divide number of heads in query")
        _check(a["dropout_p"] == 0.0 and a["return_debug_mask"] is False, "no dropout here")
        if a.get("block_table") is not None:
            _check(k.shape[1] % 256 == 0, "Paged KV cache block size must be divisible by 256")

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, a: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        left, right, scale = a["window_size_left"], a["window_size_right"], a["scale"]
        if a["is_causal"]:
            right = 0
        if (left, right) == (-1, -1):
            return PlainKernels().attend_all(q, k, v, scale)
        assert right == 0
        return PlainKernels().attend_causal(q, k, v, len(k) - q.shape[1], None if left < 0 else left + 1, scale)


def _check(holds: bool, text: str) -> None:
    if not holds:
        raise RuntimeError(text)
