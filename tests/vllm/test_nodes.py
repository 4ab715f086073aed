"""Prompts between two nodes, by the control line and by steps as vLLM makes them: real NIXL, real files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import torch
from tests.vllm.nodes import BLOCK, LAYERS, Nodes, model_dir, nodes, save

from dualpath.core.errors import EngineLostError
from dualpath.core.ids import BlockKey, RequestId
from dualpath.core.keys import child_key
from dualpath.core.request import TokenEvent
from dualpath.core.weights import Weights
from dualpath.protocol.api import DecodeOrder, DecodeStep, PrefillOrder
from dualpath.vllm.messages import Load, Push, StepFailures, StepWork
from dualpath.vllm.worker.half import DecodeWorkerHalf, PrefillWorkerHalf
from dualpath.vllm.worker.parts import WholeBlocks
from dualpath.vllm.worker.staged_decode import StagedDecode

PROMPT = list(range(4 * BLOCK + 20))  # five blocks, the last one partly filled
NUM_BLOCKS = 5
NEW_IDS = (11, 12, 13, 14, 15)
KEY = BlockKey(b"k" * 16)
ONE, TWO = RequestId("one"), RequestId("two")


def whole(rid: RequestId) -> Push:
    """All of the prompt."""
    return Push(rid, rid, 0, NEW_IDS, is_last=True)


async def handing_over(
    both: Nodes, rid: RequestId, num_hits: int = 0, on_prefill: Sequence[int] = ()
) -> tuple[PrefillOrder, AsyncIterator[bool]]:
    """The prompt's order, and the line on which its KV is awaited; vLLM may be asked."""
    order = await both.read(both.request(rid, PROMPT), num_hits, on_prefill)
    line = both.prefill.line.hand_over(order)
    assert await anext(line)
    return order, line


async def ended(line: AsyncIterator[bool]) -> None:
    """All of the prompt's KV is in the decode buffer."""
    assert [item async for item in line] == []


async def handed_over(both: Nodes, rid: RequestId) -> PrefillOrder:
    """Of a prompt without hits that was computed, and has arrived."""
    order, line = await handing_over(both, rid)
    both.prefill.fill(NEW_IDS, seed=1)
    await both.step(both.prefill, StepWork(pushes=[whole(rid)]))
    await ended(line)
    return order


async def test_a_prompt_without_hits_goes_to_the_decode_side_and_to_storage(tmp_path: Path) -> None:
    async with nodes(tmp_path) as both:
        await both.turn("one", PROMPT, seed=1)
        request = both.request("one", PROMPT)
        steps = both.written["one"]
        assert steps[0].writing == both.keys(request)
        assert sorted(key for step in steps for key in step.durable) == sorted(both.keys(request))
        assert any(step.admitted for step in steps)
        assert len(list((tmp_path / "store").rglob("*"))) > 4


@pytest.mark.parametrize("on_prefill", [(0, 1, 2, 3), (), (0, 1)], ids=["prefill", "decode", "split"])
async def test_hits_are_loaded_layer_by_layer_from_either_side(tmp_path: Path, on_prefill: tuple[int, ...]) -> None:
    async with nodes(tmp_path) as both:
        made = await both.turn("one", PROMPT, seed=1)
        _, line = await handing_over(both, TWO, 4, on_prefill)
        before = both.prefill.traffic.stats().kv_transfer_bytes
        layers: list[torch.Tensor] = []
        tail = torch.rand_like(made[:, 4])

        def compute(layer: int) -> None:
            cache = list(both.prefill.kv.values())[layer]
            layers.append(cache[list(NEW_IDS[:4])].clone())
            cache[NEW_IDS[4]] = tail[layer]

        work = StepWork(loads=[Load("two", TWO, 0, NEW_IDS[:4])], pushes=[whole(TWO)])
        await both.step(both.prefill, work, compute)
        assert torch.equal(torch.stack(layers), made[:, :4]), "as each layer was computed"
        await ended(line)
        after = both.prefill.traffic.stats().kv_transfer_bytes
        object_bytes = 4096 + both.namespace.geometry.full_block_bytes
        num_far = 4 - len(on_prefill)
        assert after["decode_to_prefill"] - before["decode_to_prefill"] == num_far * object_bytes
        assert after["prefill_to_decode"] - before["prefill_to_decode"] == (NUM_BLOCKS - num_far) * object_bytes
        await _take(both, TWO, torch.cat([made[:, :4], tail[:, None]], dim=1))
        await both.release(TWO)


async def _take(both: Nodes, rid: RequestId, expected: torch.Tensor, num_hits: int = 4) -> None:
    """The decode side takes what was handed over, which is ``expected``, and ends."""
    writing = await both.persisting(both.request(rid, PROMPT), num_hits)
    await both.step(both.decode, StepWork(loads=[Load(rid, rid, 0, NEW_IDS)]))
    assert await both.taken() == ({rid}, set())
    assert torch.equal(both.decode.content(NEW_IDS), expected)
    await both.decode.line.stop(rid)
    await writing


async def test_chunks_go_when_they_are_complete(tmp_path: Path) -> None:
    async with nodes(tmp_path) as both:
        _, line = await handing_over(both, ONE)
        made = both.prefill.fill(NEW_IDS, seed=2)
        await both.step(both.prefill, StepWork(pushes=[Push("one", ONE, 0, NEW_IDS[:2], is_last=False)]))
        await both.step(both.prefill, StepWork())
        await both.step(both.prefill, StepWork(pushes=[Push("one", ONE, 2, NEW_IDS, is_last=True)]))
        await ended(line)
        await _take(both, ONE, made, num_hits=0)
        await both.release(ONE)


@pytest.mark.parametrize("on_prefill", [(0, 1, 2, 3), ()], ids=["own slots", "far slots"])
async def test_a_hit_that_is_damaged_in_memory_is_found_and_all_is_pushed_anew(
    tmp_path: Path, on_prefill: tuple[int, ...]
) -> None:
    async with nodes(tmp_path) as both:
        await both.turn("one", PROMPT, seed=1)
        order, line = await handing_over(both, TWO, 4, on_prefill)
        engine = both.prefill.node.engine
        slot = engine._staged.slots(TWO)[2] if on_prefill else order.decode_slots[2]
        view = (both.prefill if on_prefill else both.decode).traffic.slot_view(slot)
        view[5000] ^= 1
        await both.step(both.prefill, StepWork(loads=[Load("two", TWO, 0, NEW_IDS[:4])], pushes=[whole(TWO)]))
        half = both.prefill.half
        assert isinstance(half, PrefillWorkerHalf)
        assert half.load_errors == set(NEW_IDS[:4])
        assert half.failures == StepFailures({"two"}, set(NEW_IDS))
        task = engine.tasks.get(TWO)
        assert task is not None
        assert task.transfers == [], "what was pushed may not arrive behind what is pushed next"
        view[5000] ^= 1  # what the decode side has read itself is not pushed, and must be sound
        made = both.prefill.fill(NEW_IDS, seed=1)
        await both.step(both.prefill, StepWork(pushes=[whole(TWO)]))
        assert half.failures == StepFailures()
        await ended(line)
        await _take(both, TWO, made)
        await both.release(TWO)


async def test_who_shares_blocks_whose_load_failed_is_tried_again(tmp_path: Path) -> None:
    async with nodes(tmp_path) as both:
        await both.turn("one", PROMPT, seed=1)
        three = RequestId("three")
        _, line = await handing_over(both, TWO, 4, (0, 1))
        _, other = await handing_over(both, three, 4, (0, 1))
        both.prefill.traffic.slot_view(both.prefill.node.engine._staged.slots(TWO)[0])[5000] ^= 1
        shared = Push("three", three, 0, (*NEW_IDS[:4], 16), is_last=True)
        work = StepWork(loads=[Load("two", TWO, 0, NEW_IDS[:4])], pushes=[shared, whole(TWO)])
        await both.step(both.prefill, work)
        assert both.prefill.half.failures == StepFailures({"two"}, {*NEW_IDS, 16})
        with pytest.raises(EngineLostError, match="shares blocks"):
            await anext(other)
        await line.aclose()
        for rid in (TWO, three):
            await both.release(rid)


async def test_a_prompt_that_arrived_damaged_is_computed_by_the_decode_side(tmp_path: Path) -> None:
    async with nodes(tmp_path) as both:
        order = await handed_over(both, ONE)
        request, rid = order.request, ONE
        both.decode.traffic.slot_view(order.decode_slots[1])[5000] ^= 1
        writing = await both.persisting(request, 0)
        await both.step(both.decode, StepWork(loads=[Load("one", rid, 0, NEW_IDS)]))
        assert await both.taken() == ({"one"}, {"one"})
        await both.decode.line.stop(rid)
        await writing
        failed = {key for step in both.written["one"] for key in step.not_persisted}
        assert failed == {both.keys(request)[1]}, "nor is it stored"
        await both.release(rid)


async def test_slots_of_a_prompt_that_vllm_holds_itself_are_free_while_it_decodes(tmp_path: Path) -> None:
    async with nodes(tmp_path) as both:
        order = await handed_over(both, ONE)
        writing = await both.persisting(order.request, 0)
        await both.step(both.decode, StepWork(unneeded=[ONE]))
        async with asyncio.timeout(10):
            while both.decode.traffic.slots.num_used:  # noqa: ASYNC110  (until its blocks are stored)
                await asyncio.sleep(0.005)
        assert not writing.done()
        await both.decode.line.stop(ONE)
        await writing
        durable = {key for step in both.written["one"] for key in step.durable}
        assert durable == set(both.keys(order.request))
        await both.release(ONE)


@pytest.mark.parametrize("has_changed", [False, True], ids=["start", "update"])
async def test_blocks_that_fill_while_decoding_are_stored_under_their_chain(tmp_path: Path, has_changed: bool) -> None:
    """And under their weights' name."""
    async with nodes(tmp_path) as both:
        if has_changed:
            await both.change(Weights(1, "1", str(model_dir(tmp_path / "new", 1))))
        order = await handed_over(both, ONE)
        request, rid = order.request, ONE
        writing = await both.persisting(request, 0)
        await both.step(both.decode, StepWork(loads=[Load("one", rid, 0, NEW_IDS)]))
        await both.taken()
        made = both.decode.fill(NEW_IDS[4:], seed=5)
        tokens = [*PROMPT[4 * BLOCK :], *range(BLOCK - 20)]
        await both.step(both.decode, StepWork(saves=[save("one", 4, NEW_IDS[4], tokens)]))
        await both.decode.line.stop(rid)
        key = child_key(both.keys(request)[-1], tokens)
        assert key in [key for step in both.written["one"] for key in step.writing], "told before stop is answered"
        await writing
        await both.left(both.decode, "one")
        await both.release(rid)
        assert key in [key for step in both.written["one"] for key in step.durable]
        longer = both.request("two", [*PROMPT[: 4 * BLOCK], *tokens, 7])
        order = await both.read(longer, 5, (4,))
        slot = both.prefill.node.engine._staged.slots(longer.request_id)[4]
        payload = bytes(both.prefill.traffic.slot_view(slot)[4096:])
        assert payload == made.contiguous().numpy().tobytes()
        await both.release(longer.request_id)


async def test_a_save_that_has_not_begun_is_called_off_when_its_block_goes_to_another(tmp_path: Path) -> None:
    async with nodes(tmp_path, num_write_slots=1, slot_s=60.0) as both:  # it would wait longer than vLLM may
        await both.turn("one", PROMPT, seed=1)
        request = both.request("two", PROMPT)
        rid = request.request_id
        await both.read(request, 4, (0, 1, 2, 3))
        writing = await both.persisting(request, 4)
        busy = await both.decode.traffic.write_slots.acquire(1)
        tokens = [*PROMPT[4 * BLOCK :], *range(BLOCK - 20)]
        await both.step(both.decode, StepWork(saves=[save("two", 4, 3, tokens)]))
        await both.step(both.decode, StepWork(preempted=("two",)))
        half = both.decode.half
        assert isinstance(half, DecodeWorkerHalf)
        assert half.finished({"two"}) == {"two"}, "nothing reads its blocks"
        both.decode.traffic.write_slots.release(busy)
        await both.decode.line.stop(rid)
        await writing
        assert len([key for step in both.written["two"] for key in step.not_persisted]) == 1
        await both.release(rid)


async def test_a_request_that_is_given_up_leaves_nothing_and_its_steps_do_nothing(tmp_path: Path) -> None:
    async with nodes(tmp_path) as both:
        await both.turn("one", PROMPT, seed=1)
        _, line = await handing_over(both, TWO, 4, (0, 1))
        await both.step(both.prefill, StepWork(pushes=[Push("two", TWO, 0, NEW_IDS[:2], is_last=False)]))
        await line.aclose()
        await both.release(TWO)
        before = both.prefill.traffic.stats().kv_transfer_bytes
        work = StepWork(loads=[Load("two", TWO, 2, NEW_IDS[2:4])], pushes=[Push("two", TWO, 2, NEW_IDS, is_last=True)])
        await both.step(both.prefill, work)
        assert both.prefill.half.load_errors == set(NEW_IDS[2:4]), "vLLM computes them"
        assert both.prefill.traffic.stats().kv_transfer_bytes == before
        await both.left(both.prefill, "two")
        await both.step(both.decode, StepWork(loads=[Load("two", TWO, 0, NEW_IDS)]))
        assert await both.taken() == ({"two"}, {"two"})


async def test_releases_wait_for_what_vllm_looks_at(tmp_path: Path) -> None:
    async with nodes(tmp_path) as both:
        await both.turn("one", PROMPT, seed=1)
        order, line = await handing_over(both, TWO, 4, (0, 1))
        rid, writing = TWO, await both.persisting(order.request, 4)
        tasks = [both.prefill.node.engine.tasks.pin(rid), both.decode.node.engine.tasks.pin(rid)]
        assert not await both.prefill.line.release(rid)
        releasing = asyncio.create_task(both.decode.line.release(rid))
        await both.decode.line.stats()  # a call of the same line that comes later
        assert not releasing.done()
        for side, task in zip((both.prefill, both.decode), tasks, strict=True):
            assert task is not None
            side.node.engine.tasks.unpin(task)
            assert side.node.engine.tasks.pin(rid) is None, "closed"
        await releasing
        await writing
        await both.release(rid)
        await line.aclose()


async def test_a_layer_that_was_never_computed_is_no_handing_over(tmp_path: Path) -> None:
    async with nodes(tmp_path) as both:
        _, line = await handing_over(both, ONE)
        half = both.prefill.half

        def step() -> None:
            half.begin(StepWork(pushes=[whole(ONE)]))
            for layer in range(LAYERS - 1):
                half.wait_layer(layer)
                half.layer_computed(layer)
            half.end_step()

        await asyncio.to_thread(step)
        with pytest.raises(EngineLostError, match="layers were computed"):
            await anext(line)
        await both.release(ONE)


async def test_headers_that_cannot_be_made_end_the_hand_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes(tmp_path) as both:
        _, line = await handing_over(both, ONE)
        monkeypatch.setattr(WholeBlocks, "header", fail)
        await both.step(both.prefill, StepWork(pushes=[whole(ONE)]))
        with pytest.raises(EngineLostError, match="of no kind that is known"):
            async with asyncio.timeout(10):
                await anext(line)
        await both.release(ONE)


async def test_a_save_that_fails_in_no_known_way_is_told_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path) as both:
        order = await handed_over(both, ONE)
        writing = await both.persisting(order.request, 0)
        await both.step(both.decode, StepWork(loads=[Load("one", ONE, 0, NEW_IDS)]))
        await both.taken()
        monkeypatch.setattr(WholeBlocks, "device_header", fail)
        tokens = [*PROMPT[4 * BLOCK :], *range(BLOCK - 20)]
        await both.step(both.decode, StepWork(saves=[save("one", 4, NEW_IDS[4], tokens)]))
        async with asyncio.timeout(10):
            await both.decode.line.stop(ONE)
            await writing
        failed = [key for step in both.written["one"] for key in step.not_persisted]
        assert failed == [child_key(both.keys(order.request)[-1], tokens)]
        await both.left(both.decode, "one")
        await both.release(ONE)


def fail(*_: object) -> None:
    raise RuntimeError("of no kind that is known")


async def test_another_prompt_than_the_orders_is_no_handing_over(tmp_path: Path) -> None:
    async with nodes(tmp_path) as both:
        _, line = await handing_over(both, ONE)
        await both.step(both.prefill, StepWork(refused=[ONE]))
        with pytest.raises(EngineLostError, match="another prompt"):
            await anext(line)
        await both.release(ONE)


async def test_more_blocks_than_the_orders_do_not_end_the_worker(tmp_path: Path) -> None:
    async with nodes(tmp_path) as both:
        _, line = await handing_over(both, ONE)
        await both.step(both.prefill, StepWork(pushes=[Push("one", ONE, 0, (*NEW_IDS, 16, 17), is_last=True)]))
        with pytest.raises(EngineLostError, match="not about this prompt"):
            await anext(line)
        await both.release(ONE)


async def test_stop_is_answered_when_all_that_was_written_has_been_told(tmp_path: Path) -> None:
    async with nodes(tmp_path) as both:
        request = both.request("one", PROMPT)
        rid = request.request_id
        await both.read(request, 0, ())
        engine = both.decode.node.engine
        assert isinstance(engine, StagedDecode)
        order = DecodeOrder(request, 4 * BLOCK, TokenEvent(1), both.keys(request))

        async def on_its_loop() -> list[DecodeStep]:
            items = engine.persist(order)
            assert (await anext(items)).writing == ()
            task = engine.tasks.get(rid)
            assert task is not None
            task.post(DecodeStep(writing=(KEY,)))
            stopping = asyncio.create_task(engine.stop(rid))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not stopping.done()
            told = [step async for step in items]
            await stopping
            return told

        told = await asyncio.wrap_future(engine.parts.spawn(on_its_loop()))
        assert told == [DecodeStep(writing=(KEY,))]
        await both.release(rid)
