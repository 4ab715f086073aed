"""vLLM's KV cache as a region that transfers reach: unit = layer * num_blocks + block. What is not dense is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from dualpath.core.errors import ConfigError
from dualpath.core.geometry import KvGeometry
from dualpath.traffic.contract import Region, Units
from dualpath.traffic.staging import DEVICE

MIN_BLOCK_TOKENS = 64
_AXES = "HNC"  # of a block: heads, tokens, content


@dataclass(frozen=True, slots=True)
class VllmKv:
    """One worker's KV cache. ``layer_names`` in the order of layers."""

    geometry: KvGeometry
    region: Region
    layer_names: tuple[str, ...]
    num_blocks: int
    dtype: str
    layout: str  # what lies in a Layer Block, and how

    def units(self, block_ids: Units, layer: int) -> Units:
        """One layer of each block."""
        return np.asarray(block_ids, dtype=np.int32) + np.int32(layer * self.num_blocks)

    def units_all_layers(self, block_ids: Units) -> Units:
        """Block by block, all its layers."""
        layers = np.arange(self.geometry.num_layers, dtype=np.int32) * np.int32(self.num_blocks)
        return (np.asarray(block_ids, dtype=np.int32)[:, None] + layers).reshape(-1)


def find_kv(kv_caches: Mapping[str, torch.Tensor], block_tokens: int) -> VllmKv:
    """``kv_caches``: of each layer ``[blocks, heads, tokens, content]``, as vLLM hands them over.

    Raises ConfigError for a layout that cannot be moved block by block.
    """
    names = _in_order(kv_caches)
    tensors = [kv_caches[name] for name in names]
    first = tensors[0]
    _check_shapes(names, tensors, block_tokens)
    num_blocks, heads, _, content = first.shape
    order = _inner_order(first)
    unit_bytes = heads * block_tokens * content * first.element_size()
    addresses = []
    for name, tensor in zip(names, tensors, strict=True):
        if _inner_order(tensor) != order or tensor.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            raise ConfigError(f"vLLM's KV cache: layer {name} is laid out unlike layer {names[0]}, or apart from it")
        step_bytes = tensor.stride(0) * tensor.element_size()
        addresses.append(tensor.data_ptr() + np.arange(num_blocks, dtype=np.int64) * step_bytes)
    found = np.concatenate(addresses)
    in_order = np.sort(found)
    gaps = in_order[1:] - in_order[:-1]
    if len(gaps) and (int(gaps.min()) < unit_bytes or np.any(gaps % unit_bytes)):
        raise ConfigError("vLLM's KV cache: blocks overlap (layers that share KV), or padding lies between them")
    storage = torch.empty(0, dtype=torch.uint8, device=first.device).set_(first.untyped_storage())
    if int(found.min() - storage.data_ptr()) % unit_bytes:
        raise ConfigError("vLLM's KV cache does not begin at a whole block of its memory")
    return VllmKv(
        geometry=KvGeometry(len(names), block_tokens, heads * content * first.element_size()),
        region=Region(DEVICE, storage, unit_bytes, found),
        layer_names=tuple(names),
        num_blocks=num_blocks,
        dtype=str(first.dtype).removeprefix("torch."),
        layout=f"vllm-{order}-h{heads}-c{content}",
    )


def _in_order(kv_caches: Mapping[str, torch.Tensor]) -> list[str]:
    """By the number in a layer's name, such as ``model.layers.3.self_attn.attn``."""
    numbers = {name: re.findall(r"(?<=\.)\d+(?=\.)", f".{name}.") for name in kv_caches}
    if not numbers or any(len(found) != 1 for found in numbers.values()):
        raise ConfigError(f"vLLM's KV cache: cannot tell the order of layers {sorted(kv_caches)[:3]} ...")
    names = sorted(numbers, key=lambda name: int(numbers[name][0]))
    if len({found[0] for found in numbers.values()}) != len(names):
        raise ConfigError(f"vLLM's KV cache: several caches in one layer, as in {names[:2]}")
    return names


def _check_shapes(names: list[str], tensors: list[torch.Tensor], block_tokens: int) -> None:
    first = tensors[0]
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.dim() != 4 or tensor.shape != first.shape or tensor.dtype != first.dtype:
            raise ConfigError(
                f"vLLM's KV cache: layer {name} is {tuple(tensor.shape)} of {tensor.dtype}; DualPath needs the same "
                f"[blocks, heads, tokens, content] for all layers, such as {names[0]}'s {tuple(first.shape)}"
            )
    if first.shape[2] != block_tokens:
        raise ConfigError(
            f"vLLM's attention kernel splits blocks of {block_tokens} tokens into {first.shape[2]}: start vLLM with "
            f"--block-size {first.shape[2]}"
        )
    if block_tokens < MIN_BLOCK_TOKENS:
        raise ConfigError(f"vLLM's blocks have {block_tokens} tokens: start it with --block-size {MIN_BLOCK_TOKENS}")


def _inner_order(tensor: torch.Tensor) -> str:
    """The order of axes inside a block, outermost first. Raises ConfigError unless it is dense."""
    axes = sorted(zip(tensor.stride()[1:], tensor.shape[1:], _AXES, strict=True), key=lambda axis: axis[:2])
    expected = 1
    for stride, size, _ in axes:
        if stride != expected and size > 1:
            raise ConfigError(
                f"vLLM's KV cache: a block of shape {tuple(tensor.shape)}, strides {tensor.stride()} has gaps; "
                "choose a layout in which heads, tokens and content are innermost (VLLM_KV_CACHE_LAYOUT=LBNHC)"
            )
        expected *= size
    return "".join(name for _, _, name in reversed(axes))
