"""Layerwise prefill: chunks equal one shot, packing changes nothing, streams are used by the rules, failures pass."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from tests.models.little_engine import Conversation, LittleEngine, RecordingStream

from dualpath.core.errors import TransferError
from dualpath.models.seam import Model, PrefillItem

FAMILIES = ["llama", "mistral", "gpt_oss", "deepseek_v3", "deepseek_v32"]  # one per kind of attention
ATOL = 2e-4  # float32 logits of magnitude 10


def _tokens(count: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(32, 127) for _ in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_prefill_equals_one_shot(family: str, model_of: Callable[[str], Model]) -> None:
    engine = LittleEngine(model_of(family))
    tokens = _tokens(433)
    whole, whole_rows = engine.prefill([Conversation(tokens)])
    done = torch.empty((engine.geometry.num_layers, 0, engine.geometry.bytes_per_token_layer), dtype=torch.uint8)
    for end in (1, 130, 131, 400, 433):  # not multiples of a block
        chunk, (done,) = engine.prefill([Conversation(tokens[:end])], [done])
    torch.testing.assert_close(chunk, whole, atol=ATOL, rtol=0)
    dtype = engine.model.spec.kv_dtype
    torch.testing.assert_close(done.view(dtype), whole_rows[0].view(dtype), atol=ATOL, rtol=0)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "deepseek_v32"])
def test_packed_equals_alone(family: str, model_of: Callable[[str], Model]) -> None:
    engine = LittleEngine(model_of(family))
    group = [Conversation(_tokens(count, seed=count)) for count in (1, 300, 64, 17)]
    packed, _ = engine.prefill(group)
    for logits, conversation in zip(packed, group, strict=True):
        alone, _ = engine.prefill([conversation])
        torch.testing.assert_close(logits, alone[0], atol=ATOL, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "deepseek_v3"])
def test_one_zeroed_layer_block_changes_its_request_only(family: str, model_of: Callable[[str], Model]) -> None:
    """Negative control: the streamed history is really what attention reads, and nobody reads a neighbour's."""
    engine = LittleEngine(model_of(family))
    group = [Conversation(_tokens(100, seed=seed)) for seed in range(3)]
    _, rows = engine.prefill(group)
    histories = [row[:, :64].clone() for row in rows]
    before, _ = engine.prefill(group, histories)
    histories[1][engine.geometry.num_layers - 1] = 0
    after, _ = engine.prefill(group, histories)
    changed = (after - before).abs().amax(dim=-1)
    assert changed[1] > 1e-2
    assert changed[[0, 2]].max() < ATOL


class BrokenStream(RecordingStream):
    def acquire(self, layer: int) -> torch.Tensor:
        if layer == 2:
            raise TransferError("the peer is gone")
        return super().acquire(layer)


@pytest.mark.parametrize("family", ["llama", "deepseek_v32"])
def test_a_failing_stream_leaves_the_model_usable(family: str, model_of: Callable[[str], Model]) -> None:
    engine = LittleEngine(model_of(family))
    conversation = Conversation(_tokens(90))
    before, _ = engine.prefill([conversation])
    history = engine.history(conversation)
    stream = BrokenStream(engine.model, [PrefillItem(conversation.tokens, 0, 0)], [history], 128)
    with pytest.raises(TransferError, match="the peer is gone"):
        engine.model.prefill([PrefillItem(conversation.tokens, 0, 0)], stream)
    assert stream.released == [0, 1]
    after, _ = engine.prefill([conversation])
    assert torch.equal(before, after)


def test_logits_are_the_callers_own(model_of: Callable[[str], Model]) -> None:
    logits, _ = LittleEngine(model_of("llama")).prefill([Conversation(_tokens(5))])
    assert logits.dtype == torch.float32
    logits.div_(2.0)  # sampling works in place, outside inference mode


def test_bad_batches_are_refused(model_of: Callable[[str], Model]) -> None:
    model = model_of("deepseek_v32")
    item = PrefillItem([65], 0, 0)
    stream = RecordingStream(model, [item], [torch.empty((4, 0, model.spec.bytes_per_token_layer))], 64)
    with pytest.raises(ValueError, match="1 to 1 requests"):
        model.prefill([item, item], stream)
    with pytest.raises(ValueError, match="1 to 1 requests"):
        model.prefill([], stream)
    with pytest.raises(ValueError, match="needs a new token"):
        model.prefill([PrefillItem([], 3, 0)], stream)
    assert stream.acquired == []
