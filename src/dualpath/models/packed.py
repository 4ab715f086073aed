"""On CPUs: the weights of linear layers in oneDNN's own order, which it would else bring them into in every forward.

One thread, AVX-512 and AMX, the 211 layers of a model of 135 M weights, time by that of plain weights: bfloat16 0.4 to
0.75 with 1 to 64 rows (a decode step has one for each request), 0.85 with 512; float32 0.83, 0.64, 0.83, 0.91 with 4,
8, 16, 64 and more, but 1.17 and 1.20 with one and two. So bfloat16 gives its plain weights up, and memory stays what
it was but for an output layer that is tied to the embeddings. float32 keeps both, if that is little.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

MOST_TWICE_BYTES = 1024**3  # float32 models whose linear layers have more are left as they are
_FEW_ROWS = 8  # what oneDNN's order is chosen for; it was as good as any with more
_PLAIN_ROWS = 3  # in float32, at most
_READ_ELSEWHERE = ("kv_b_proj",)  # latent attention computes with it in a way of its own


class PackedLinear(nn.Module):
    """A ``nn.Linear`` in inference. Its ``weight`` has shape and dtype; in bfloat16 only ``to_dense`` reads it."""

    _packed: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self._keeps_plain = linear.weight.dtype == torch.float32
        self.register_buffer("_packed", None, persistent=False)
        self.overwrite(linear.weight)

    def overwrite(self, weight: torch.Tensor) -> None:
        weight = weight.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _FEW_ROWS)
        self.weight = nn.Parameter(weight if self._keeps_plain else self._packed, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._keeps_plain and x.numel() <= _PLAIN_ROWS * self.in_features:
            return functional.linear(x, self.weight, self.bias)
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out


def pack_linears(model: nn.Module) -> None:
    """In place, one layer after the other; nothing where it was not measured to be faster."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and name not in _READ_ELSEWHERE and _is_faster(child.weight)
    ]
    twice_bytes = sum(child.weight.nbytes for _, _, child in found if child.weight.dtype == torch.float32)
    if twice_bytes <= MOST_TWICE_BYTES:
        while found:
            parent, name, child = found.pop()
            setattr(parent, name, PackedLinear(child))


def packed_weights(model: nn.Module) -> dict[str, PackedLinear]:
    """By the names of their weights in the state dict."""
    return {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def _is_faster(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or not weight.numel() or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.float32:
        return torch.cpu._is_avx512_supported()
    return weight.dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
