"""On CPUs: the weights of linear layers in oneDNN's own order, which it would else bring them into in every forward.

Decode steps need it most: they read all weights for one row of each request. The 211 layers of a model of 135 M
weights, one thread, AVX-512, ms by rows, plain and packed: float32 45, 75, 95, 65, 79 and 39, 46, 34, 32, 41 for 1, 2,
3, 4, 8; bfloat16 34, 35, 36, 38, 42 and 21, 24, 19, 18, 23. One row and two are padded: they cost what four do. Plain
weights are given up, so memory stays what it was but for an output layer that is tied to the embeddings.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

_FEW_ROWS = 8  # what oneDNN's order is chosen for; 4 to 64 were as good
_FEWEST_ROWS = 3
_PADDED_ROWS = 4
_READ_ELSEWHERE = ("kv_b_proj",)  # latent attention computes with it in a way of its own


class PackedLinear(nn.Module):
    """A ``nn.Linear`` in inference. Its ``weight`` has shape and dtype; only ``to_dense`` reads it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.overwrite(linear.weight)

    def overwrite(self, weight: torch.Tensor) -> None:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _FEW_ROWS)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        num_rows = x.numel() // self.in_features
        if not 0 < num_rows < _FEWEST_ROWS:
            return self._compute(x)
        padded = functional.pad(x.reshape(num_rows, self.in_features), (0, 0, 0, _PADDED_ROWS - num_rows))
        return self._compute(padded)[:num_rows].view(*x.shape[:-1], self.out_features)

    def _compute(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def pack_linears(model: nn.Module) -> None:
    """In place, one layer after the other; nothing where it was not measured to be faster."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and name not in _READ_ELSEWHERE and _is_faster(child.weight)
    ]
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
