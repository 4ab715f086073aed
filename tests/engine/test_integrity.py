"""Whatever KV meets between where it is made and where it is used or stored: right answers, and nothing wrong kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.engine.pair import Pair, flip, flip_unit, prompt_of, run

from dualpath.core.ids import RequestId
from dualpath.protocol.api import DecodeOrder
from dualpath.store.header import HEADER_BYTES
from dualpath.testing.hash_model import BLOCK_TOKENS, GEOMETRY
from dualpath.traffic.contract import Op, Transfer, Units
from dualpath.traffic.fake_transport import Fate

PROMPT = prompt_of(9 * BLOCK_TOKENS + 2)
Arm = Callable[[Pair], None]
ALL = 10**6  # units that are missing: nothing has moved


def on_the_way(op: Op, fate: Fate, *, of_headers: bool = False, number: int = 0) -> Arm:
    """The ``number``-th transfer of this kind meets a fate."""

    def arm(pair: Pair) -> None:
        pair.fates += [(op, of_headers, Fate())] * number + [(op, of_headers, fate)]

    return arm


def once(call: Callable[[], None]) -> Callable[[], None]:
    calls = [call]
    return lambda: calls.pop()() if calls else None


def in_decode_slots(damage: Callable[[list[memoryview]], None]) -> Arm:
    """When the prompt has arrived, before the decode engine looks at it. ``damage`` gets the slots, in order."""

    def arm(pair: Pair) -> None:
        decode, slots = pair.decode.decode, pair.decode._staged.slots
        spoil = once(lambda: damage([pair.decode.traffic.slot_view(slot) for _, slot in sorted(slots_of().items())]))
        orders: list[DecodeOrder] = []

        def slots_of() -> dict[int, int]:
            return slots(orders[-1].request.request_id)

        def damaged(order: DecodeOrder) -> Any:
            orders.append(order)
            spoil()
            return decode(order)

        pair.decode.decode = damaged  # type: ignore[method-assign]

    return arm


def in_prefill_slots(damage: Callable[[list[memoryview]], None]) -> Arm:
    """When the hits have been read and verified, before a forward loads them."""

    def arm(pair: Pair) -> None:
        read, slots = pair.prefill.read, pair.prefill._staged.slots

        async def damaged(request_id: RequestId, *order: Any) -> Any:
            outcome = await read(request_id, *order)
            spoil([pair.prefill.traffic.slot_view(slot) for _, slot in sorted(slots(request_id).items())])
            return outcome

        calls = [damage]

        def spoil(views: list[memoryview]) -> None:
            if calls:
                calls.pop()(views)

        pair.prefill.read = damaged  # type: ignore[method-assign]

    return arm


def copied(target: str) -> Arm:
    """A copy on the decode engine brings a wrong bit to this region."""

    def arm(pair: Pair) -> None:
        traffic = pair.decode.traffic
        copy = traffic.copy

        def damaged(source: str, units: Units, region: str, to: Units, after: Any = None) -> Transfer[int]:
            def then() -> None:
                if region == target:
                    spoil(int(to[1]))
                if after is not None:
                    after()

            return copy(source, units, region, to, then)

        units: list[int] = []

        def spoil(unit: int) -> None:
            if not units:
                units.append(unit)
                flip_unit(traffic, target, unit)

        traffic.copy = damaged  # type: ignore[method-assign]

    return arm


def at_a_write(pair: Pair) -> None:
    """A block of a prompt whose answer is one token: device memory never has it."""
    traffic, write = pair.decode.traffic, pair.decode.traffic.write_blocks

    def damaged(blocks: Any, *args: Any, **kwargs: Any) -> Any:
        transfers = write(blocks, *args, **kwargs)  # nothing of it has begun
        spoil(blocks[0][2])
        return transfers

    slots: list[int] = []

    def spoil(slot: int) -> None:
        if not slots:
            slots.append(slot)
            flip(traffic.slot_view(slot), HEADER_BYTES + 9)

    traffic.write_blocks = damaged  # type: ignore[method-assign]


def payload(byte: int) -> int:
    return HEADER_BYTES + byte


def swap(views: list[memoryview], first: slice, second: slice, other: int = 0) -> None:
    """Two pieces of the first slot, or of it and another."""
    kept = bytes(views[0][first])
    views[0][first] = views[other][second]
    views[other][second] = kept


LAYER_0 = slice(HEADER_BYTES, HEADER_BYTES + GEOMETRY.layer_block_bytes)
LAYER_1 = slice(LAYER_0.stop, LAYER_0.stop + GEOMETRY.layer_block_bytes)
HEADER, WHOLE = slice(0, HEADER_BYTES), slice(None)

FIRST_TURN = {
    "flip in a push": on_the_way(Op.PUSH, Fate(flips=[77])),
    "flip in the last layer's push": on_the_way(Op.PUSH, Fate(flips=[77]), number=GEOMETRY.num_layers - 1),
    "torn push": on_the_way(Op.PUSH, Fate(num_missing=1)),
    "push that moved nothing": on_the_way(Op.PUSH, Fate(num_missing=ALL), number=1),
    "flip in a push of headers": on_the_way(Op.PUSH, Fate(flips=[8 * 40]), of_headers=True),
    "push of headers that moved nothing": on_the_way(Op.PUSH, Fate(num_missing=ALL), of_headers=True),
    "flip in a decode slot": in_decode_slots(lambda views: flip(views[2], payload(13))),
    "flip in the last, partly filled slot": in_decode_slots(lambda views: flip(views[-1], payload(3))),
    "flip in a decode slot's header": in_decode_slots(lambda views: flip(views[2], 100)),
    "headers of two blocks exchanged": in_decode_slots(lambda views: swap(views, HEADER, HEADER, 1)),
    "two blocks exchanged": in_decode_slots(lambda views: swap(views, WHOLE, WHOLE, 1)),
    "two layers exchanged": in_decode_slots(lambda views: swap(views, LAYER_0, LAYER_1)),
    "flip on the way to the device": copied("device"),
}
SECOND_TURN = {
    "flip in a pull": on_the_way(Op.PULL, Fate(flips=[300])),
    "flip in the last layer's pull": on_the_way(Op.PULL, Fate(flips=[300]), number=GEOMETRY.num_layers - 1),
    "torn pull": on_the_way(Op.PULL, Fate(num_missing=2)),
    "flip in a pull of headers": on_the_way(Op.PULL, Fate(flips=[8 * 90]), of_headers=True),
    "pull of headers that moved nothing": on_the_way(Op.PULL, Fate(num_missing=ALL), of_headers=True),
    "flip in a prefill slot": in_prefill_slots(lambda views: flip(views[1], payload(7))),
    "flip in a prefill slot's header": in_prefill_slots(lambda views: flip(views[1], 30)),
    "two prefill slots exchanged": in_prefill_slots(lambda views: swap(views, WHOLE, WHOLE, 1)),
    "two layers in a prefill slot exchanged": in_prefill_slots(lambda views: swap(views, LAYER_0, LAYER_1)),
    **FIRST_TURN,
}


@pytest.mark.parametrize("arm", FIRST_TURN.values(), ids=FIRST_TURN)
@pytest.mark.parametrize("settings", [{}, {"max_batch_tokens": 7}, {"streams_layers": False}], ids=str)
def test_a_prompt_that_is_computed(arm: Arm, settings: dict[str, Any]) -> None:
    async def scenario(pair: Pair) -> None:
        arm(pair)
        first = await pair.ask(PROMPT)
        assert not pair.fates, "the fault was not met"
        assert pair.num_corrupt > 0
        assert first.record.num_retries == 1
        assert await pair.rest() >= len(PROMPT) // BLOCK_TOKENS
        second = await pair.ask([*PROMPT, *first.tokens, 5])
        assert second.num_hit_blocks >= len(PROMPT) // BLOCK_TOKENS
        assert second.record.num_retries == 0
        await pair.rest()

    run(scenario, **settings)


@pytest.mark.parametrize("arm", SECOND_TURN.values(), ids=SECOND_TURN)
@pytest.mark.parametrize("settings", [{}, {"max_batch_tokens": 7}, {"streams_layers": False}], ids=str)
def test_a_prompt_with_hits(arm: Arm, settings: dict[str, Any]) -> None:
    """Half of them are read on either side."""

    async def scenario(pair: Pair) -> None:
        first = await pair.ask(PROMPT)
        await pair.rest()
        assert pair.num_corrupt == 0
        arm(pair)
        prompt = [*PROMPT, *first.tokens, *prompt_of(11, 1)]
        second = await pair.ask(prompt)
        assert not pair.fates, "the fault was not met"
        assert pair.num_corrupt > 0
        assert second.record.num_retries == 1
        assert await pair.rest() >= len(prompt) // BLOCK_TOKENS
        third = await pair.ask([*prompt, *second.tokens, 5])
        assert third.num_hit_blocks >= len(prompt) // BLOCK_TOKENS
        await pair.rest()

    run(scenario, **settings)


@pytest.mark.parametrize(
    ("arm", "num_tokens"),
    [(copied("staging"), 4 * BLOCK_TOKENS), (at_a_write, 1)],
    ids=["on the way to the slot", "in the slot"],
)
def test_a_block_that_is_damaged_before_it_is_written_is_not_stored(arm: Arm, num_tokens: int) -> None:
    async def scenario(pair: Pair) -> None:
        arm(pair)
        first = await pair.ask(PROMPT, num_tokens)
        num_blocks = (len(PROMPT) + num_tokens) // BLOCK_TOKENS
        assert await pair.rest() == num_blocks - 1
        assert pair.num_corrupt == 1
        assert pair.decode.traffic.stats().blocks_not_persisted == 1
        assert first.record.num_retries == 0
        await pair.ask([*PROMPT, *first.tokens, 5])
        await pair.rest()

    run(scenario)


def test_a_slot_with_bad_memory_is_met_once() -> None:
    """A bit of it that stays as it is: whoever used it would find damage."""

    async def scenario(pair: Pair) -> None:
        traffic, decode = pair.decode.traffic, pair.decode.decode
        bad = 1

        def damaged(order: DecodeOrder) -> Any:
            if bad in pair.decode._staged.slots(order.request.request_id).values():
                flip(traffic.slot_view(bad), payload(9))
            return decode(order)

        pair.decode.decode = damaged  # type: ignore[method-assign]
        retries = [(await pair.ask(prompt_of(17, seed))).record.num_retries for seed in range(6)]
        assert retries == [1, 0, 0, 0, 0, 0]
        await pair.rest()
        assert (await pair.decode.stats()).staging_slots_aside == 1

    run(scenario)


def test_rows_of_a_former_piece_that_never_arrived_are_found_before_they_are_used() -> None:
    """The block at the seam of two pieces has new rows in both: what the slot has then is stale."""

    async def scenario(pair: Pair) -> None:
        layers = GEOMETRY.num_layers
        pair.fates = [(Op.PUSH, False, Fate())] * layers + [(Op.PUSH, False, Fate(num_missing=ALL))] * layers
        await pair.ask(PROMPT)
        assert not pair.fates
        assert pair.prefill.traffic.stats().kv_corrupt > 0
        assert pair.decode.traffic.stats().kv_corrupt == 0
        await pair.rest()

    run(scenario, max_batch_tokens=7)


@pytest.mark.parametrize("settings", [{}, {"max_batch_tokens": 7}, {"streams_layers": False}], ids=str)
def test_nothing_overtakes_a_slow_digest(settings: dict[str, Any]) -> None:
    async def scenario(pair: Pair) -> None:
        for engine in (pair.prefill, pair.decode):
            checks = engine.traffic.checks

            def slow(*args: Any, digests: Any = checks.digests) -> Any:
                pair.runtime.block_s(pair.runtime.chance.uniform(0, 0.05))
                return digests(*args)

            checks.digests = slow  # type: ignore[method-assign]
        first = await pair.ask(PROMPT, 9)
        second = await pair.ask([*PROMPT, *first.tokens, *prompt_of(11, 1)], 9)
        await pair.rest()
        assert (first.record.num_retries, second.record.num_retries, pair.num_corrupt) == (0, 0, 0)

    run(scenario, **settings)


def test_hits_that_arrive_damaged_again_and_again_are_computed() -> None:
    """At the third attempt; no more is read."""

    async def scenario(pair: Pair) -> None:
        first = await pair.ask(PROMPT)
        await pair.rest()
        pair.fates = [(Op.PULL, False, Fate(flips=[99]))] * 100
        second = await pair.ask([*PROMPT, *first.tokens, 5])
        assert second.record.num_retries == 2
        assert second.record.num_recomputed_blocks > 0
        pair.fates.clear()
        await pair.rest()

    run(scenario)


@pytest.mark.parametrize("path", ["decode", "split"])
def test_layers_may_come_before_their_headers(path: str) -> None:
    async def scenario(pair: Pair) -> None:
        first = await pair.ask(PROMPT)
        await pair.rest()
        pair.fates = [(op, True, Fate(delay_s=0.3)) for op in Op]
        second = await pair.ask([*PROMPT, *first.tokens, 5])
        assert not pair.fates
        assert (second.record.num_retries, pair.num_corrupt) == (0, 0)
        await pair.rest()

    run(scenario, path=path)


def test_a_failed_push_of_headers_may_still_arrive() -> None:
    """Decode slots are used again when the decode engine is at rest, not before."""

    async def scenario(pair: Pair) -> None:
        release, released = pair.prefill.release, []

        async def watched(request_id: RequestId) -> bool:
            released.append(await release(request_id))
            return released[-1]

        pair.prefill.release = watched  # type: ignore[method-assign]
        on_the_way(Op.PUSH, Fate(fails=True, late_s=(0.3,)), of_headers=True)(pair)
        answer = await pair.ask(PROMPT)
        assert answer.record.num_retries == 1
        assert released[0] is False
        await pair.rest()
        assert pair.num_corrupt == 0

    run(scenario)


def test_one_bad_history_in_a_batch_costs_the_others_nothing() -> None:
    async def scenario(pair: Pair) -> None:
        prompts = [prompt_of(17, seed) for seed in range(1, 4)]
        firsts = [await pair.ask(prompt) for prompt in prompts]
        await pair.rest()
        in_prefill_slots(lambda views: flip(views[0], payload(2)))(pair)
        more = [pair.ask([*p, *first.tokens, 8, 9]) for p, first in zip(prompts, firsts, strict=True)]
        answers = await asyncio.gather(*more)
        assert sorted(answer.record.num_retries for answer in answers) == [0, 0, 1]
        await pair.rest()

    run(scenario, path="prefill")


def test_without_faults_nothing_counts_as_corrupt() -> None:
    async def scenario(pair: Pair) -> None:
        prompt = PROMPT
        for turn in range(4):
            prompt = [*prompt, *(await pair.ask(prompt, 7)).tokens, *prompt_of(turn + 1, turn)]
        await asyncio.gather(*(pair.ask([*prompt, number]) for number in range(6)))
        await pair.rest()
        assert pair.num_corrupt == 0

    for max_batch_tokens in (5, 8192):
        run(scenario, max_batch_tokens=max_batch_tokens)


def test_where_storage_alone_is_trusted_no_headers_travel() -> None:
    async def scenario(pair: Pair) -> None:
        first = await pair.ask(PROMPT)
        await pair.rest()
        pair.fates = [(op, True, Fate(fails=True)) for op in Op]
        await pair.ask([*PROMPT, *first.tokens, 5])
        assert len(pair.fates) == 2
        await pair.rest()

    run(scenario, verifies=False)
