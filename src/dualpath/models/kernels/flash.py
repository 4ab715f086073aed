"""Flash Attention over one sequence, by the ATen operator that every CUDA build of torch has.

``varlen_attn`` around it takes other arguments in every release, so the operator is called itself, with what it has had
since torch 2.11; of newer arguments those that its schema names. Version 2 refuses what is listed in ``may_take``, and
wants both or neither of the cumulative lengths.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from dualpath.models.kernels.merge import Attended

MAX_HEAD_DIM = 256
CAUSAL = (-1, 0)
ALL = (-1, -1)


def flash_op() -> Any:
    return torch.ops.aten._flash_attention_forward.default


@cache
def _extra_arguments(op: Any) -> dict[str, Any]:
    """One split: results do not depend on how busy the device is."""
    names = {argument.name for argument in op._schema.arguments}
    return {"num_splits": 1} if "num_splits" in names else {}


def may_take(q: torch.Tensor, k: torch.Tensor) -> bool:
    """Half precision, heads of a multiple of 8 up to 256."""
    dim = q.shape[-1]
    return q.dtype in (torch.bfloat16, torch.float16) and k.dtype == q.dtype and dim % 8 == 0 and dim <= MAX_HEAD_DIM


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: tuple[torch.Tensor, torch.Tensor], window: tuple[int, int],
    scale: float,
) -> Attended:  # fmt: skip
    """q ``[Hq, N, D]``, k and v ``[T, Hkv, D]``, ``ends`` int32 ``[0, N]`` and ``[0, T]`` on the device -> out
    ``[N, Hq, D]``, lse ``[N, Hq]``. Causality and windows are aligned with the last key. Raises RuntimeError.
    """
    op = flash_op()
    is_causal = window == CAUSAL
    out, lse, *_ = op(
        q.transpose(0, 1).contiguous(), k, v, *ends, q.shape[1], k.shape[0], 0.0, is_causal, False,
        scale=scale, window_size_left=window[0], window_size_right=window[1], **_extra_arguments(op),
    )  # fmt: skip
    return out, lse.transpose(0, 1)  # it gives [Hq, N]
