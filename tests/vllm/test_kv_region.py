"""vLLM's KV cache as units that transfers reach, and layouts that cannot be moved block by block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.vllm.nodes import BLOCK, BLOCKS, CONTENT, HEADS, LAYERS, kv_caches

from dualpath.core.errors import ConfigError
from dualpath.traffic.contract import Region
from dualpath.vllm.worker.kv_region import find_kv

Caches = dict[str, torch.Tensor]


def laid_out(shape: tuple[int, ...], order: tuple[int, ...], num_layers: int = LAYERS) -> torch.Tensor:
    """``[layers, blocks, heads, tokens, content]`` in memory in another order of these axes."""
    sizes = (num_layers, *shape)
    memory = torch.zeros([sizes[axis] for axis in order])
    return memory.permute(*[order.index(axis) for axis in range(5)])


def named(whole: torch.Tensor) -> Caches:
    return {f"model.layers.{layer}.self_attn.attn": whole[layer] for layer in range(len(whole))}


SHAPE = (BLOCKS, HEADS, BLOCK, CONTENT)


def unit_bytes_at(region: Region, unit: int) -> bytes:
    start = int(region.addresses[unit]) - region.storage.data_ptr()
    return bytes(region.storage[start : start + region.unit_bytes].numpy())


@pytest.mark.parametrize(
    ("order", "name"),
    [((0, 1, 2, 3, 4), "HNC"), ((1, 0, 2, 3, 4), "HNC"), ((0, 1, 3, 2, 4), "NHC"), ((1, 0, 3, 2, 4), "NHC")],
    ids=["LBHNC", "BLHNC", "LBNHC", "BLNHC"],
)
def test_a_unit_is_one_layer_of_one_block(order: tuple[int, ...], name: str) -> None:
    caches = named(laid_out(SHAPE, order))
    kv = find_kv(caches, BLOCK)
    for layer, cache in enumerate(caches.values()):
        for block in range(BLOCKS):
            cache[block] = layer * 1000 + block
    assert kv.geometry.num_layers == LAYERS
    assert kv.geometry.layer_block_bytes == HEADS * BLOCK * CONTENT * 4
    assert kv.layout == f"vllm-{name}-h{HEADS}-c{CONTENT}"
    for layer, block in ((0, 0), (2, 5), (LAYERS - 1, BLOCKS - 1)):
        (unit,) = kv.units(np.array([block], dtype=np.int32), layer)
        found = np.frombuffer(unit_bytes_at(kv.region, unit), dtype=np.float32)
        assert set(found.tolist()) == {layer * 1000 + block}
        assert kv.units_all_layers(np.array([block], dtype=np.int32))[layer] == unit


def test_layers_are_in_the_order_of_their_numbers() -> None:
    whole = laid_out(SHAPE, (0, 1, 2, 3, 4), num_layers=11)
    caches = {f"model.layers.{layer}.attn": whole[layer] for layer in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    assert find_kv(caches, BLOCK).layer_names == tuple(f"model.layers.{layer}.attn" for layer in range(11))


def _apart() -> Caches:
    return {f"model.layers.{layer}.attn": torch.zeros(SHAPE) for layer in range(2)}


def _shared() -> Caches:
    whole = torch.zeros(SHAPE)
    return {"model.layers.0.attn": whole, "model.layers.1.attn": whole}


def _two_in_a_layer() -> Caches:
    whole = torch.zeros((2, *SHAPE))
    return {"model.layers.0.attn": whole[0], "model.layers.0.cross": whole[1]}


def _other_shape() -> Caches:
    return {"model.layers.0.attn": torch.zeros(SHAPE), "model.layers.1.attn": torch.zeros((BLOCKS, 1, BLOCK, CONTENT))}


def _gaps_in_a_block() -> Caches:
    return named(torch.zeros((LAYERS, BLOCKS, HEADS, BLOCK, 2 * CONTENT))[..., :CONTENT])


def _gaps_between_blocks() -> Caches:
    whole = torch.zeros((LAYERS, BLOCKS, HEADS * BLOCK * CONTENT + 8))
    return named(whole[..., : HEADS * BLOCK * CONTENT].unflatten(-1, (HEADS, BLOCK, CONTENT)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_apart, "apart from it"),
        (_shared, "overlap"),
        (_two_in_a_layer, "several caches in one layer"),
        (_other_shape, "the same"),
        (_gaps_in_a_block, "gaps"),
        (_gaps_between_blocks, "padding"),
        (lambda: named(torch.zeros((LAYERS, BLOCKS, 2, HEADS, BLOCK, CONTENT))), "needs the same"),
        (lambda: named(laid_out((BLOCKS, HEADS, BLOCK // 2, CONTENT), (0, 1, 2, 3, 4))), "--block-size 32"),
        (lambda: {"attention": torch.zeros(SHAPE)}, "order of layers"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_what_cannot_be_moved_block_by_block_is_refused(make: Callable[[], Caches], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        find_kv(make(), BLOCK)
    assert "\n" not in str(refused.value)


def test_small_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="--block-size 64"):
        find_kv(named(laid_out((BLOCKS, HEADS, 16, CONTENT), (0, 1, 2, 3, 4))), 16)


def test_one_allocation_of_the_tests_is_one_of_vllms() -> None:
    assert find_kv(kv_caches(), BLOCK).num_blocks == BLOCKS
