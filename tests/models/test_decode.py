"""Decode: a request's logits do not depend on its batch, on where its blocks lie or on what unwritten memory holds."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from tests.models.little_engine import Conversation, LittleEngine

from dualpath.models.families import SUPPORTED_FAMILIES
from dualpath.models.seam import Model

ATOL = 2e-4


@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
def test_batched_equals_alone_and_equals_prefill(family: str, model_of: Callable[[str], Model]) -> None:
    engine = LittleEngine(model_of(family), block_tokens=16)
    draw = random.Random(3)
    lengths = [1, 15, 16, 40, 300]
    prompts = [[draw.randrange(32, 127) for _ in range(length)] for length in lengths]
    rows = [engine.prefill([Conversation(prompt)])[1][0] for prompt in prompts]
    pool, block_lists = engine.fill_pool(rows, room_tokens=1)
    batched = engine.model.decode(engine.batch([65] * 5, lengths, block_lists), pool.clone())
    assert batched.dtype == torch.float32
    for i, length in enumerate(lengths):
        alone = engine.model.decode(engine.batch([65], [length], [block_lists[i]]), pool.clone())
        torch.testing.assert_close(batched[i], alone[0], atol=ATOL, rtol=0)
        prefilled, _ = engine.prefill([Conversation([*prompts[i], 65])])
        torch.testing.assert_close(batched[i], prefilled[0], atol=ATOL, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "deepseek_v3", "deepseek_v32"])
def test_only_the_new_rows_are_written(family: str, model_of: Callable[[str], Model]) -> None:
    engine = LittleEngine(model_of(family), block_tokens=16)
    prompts = [[70] * 20, [80] * 31]
    rows = [engine.prefill([Conversation(prompt)])[1][0] for prompt in prompts]
    pool, block_lists = engine.fill_pool(rows, room_tokens=1)
    before = pool.clone()
    engine.model.decode(engine.batch([65, 66], [20, 31], block_lists), pool)
    changed = {(b, t) for b, _, t in (pool != before).any(-1).nonzero().tolist()}
    assert changed == {(block_lists[0][1], 4), (block_lists[1][1], 15)}


def test_a_zeroed_layer_block_changes_its_request_only(model_of: Callable[[str], Model]) -> None:
    engine = LittleEngine(model_of("llama"), block_tokens=16)
    rows = [engine.prefill([Conversation([70 + i] * 50)])[1][0] for i in range(3)]
    pool, block_lists = engine.fill_pool(rows, room_tokens=1)
    batch = engine.batch([65] * 3, [50] * 3, block_lists)
    before = engine.model.decode(batch, pool)
    pool[block_lists[1][0], 2] = 0
    changed = (engine.model.decode(batch, pool) - before).abs().amax(dim=-1)
    assert changed[1] > 1e-3
    assert changed[[0, 2]].max() < ATOL


def test_memory_of_another_shape_is_refused(model_of: Callable[[str], Model]) -> None:
    engine = LittleEngine(model_of("llama"))
    batch = engine.batch([65], [0], [[0]])
    shape = (2, engine.geometry.num_layers, 64, engine.geometry.bytes_per_token_layer)
    with pytest.raises(ValueError, match="pool must be uint8"):
        engine.model.decode(batch, torch.zeros(shape, dtype=torch.int8))
    with pytest.raises(ValueError, match="pool must be uint8"):
        engine.model.decode(batch, torch.zeros((*shape[:3], shape[3] + 4), dtype=torch.uint8))
    with pytest.raises(ValueError, match="contiguous"):
        engine.model.decode(batch, torch.zeros((2, 64, *shape[1:2], shape[3]), dtype=torch.uint8).transpose(1, 2))
