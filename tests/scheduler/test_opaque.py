"""Requests that the decode engine answers in its own words: no token ids, no resuming, but blocks that are found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.scheduler.cluster import Cluster, cluster
from tests.scheduler.fakes import FakeDecode
from tests.scheduler.fixtures import BLOCK, NAMESPACE, keys_of, make_request
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.errors import EngineLostError
from dualpath.core.ids import BlockKey
from dualpath.core.keys import child_key, root_key
from dualpath.core.request import FinishReason, Request, TokenEvent
from dualpath.protocol.api import DecodeOrder, DecodeStep
from dualpath.scheduler.config import SchedulerConfig

PROMPT = tuple(range(20))
ANSWER = tuple(range(500, 512))
SAID = TokenEvent(0)


def opaque(name: str = "r") -> Request:
    return replace(make_request(name, prompt=PROMPT, max_tokens=len(ANSWER)), is_opaque=True)


class Speaker:
    """Decodes ``ANSWER`` behind the prompt, and says of its tokens only that they are there."""

    def __init__(self, engine: FakeDecode) -> None:
        self.engine = engine
        self.fail_after: list[int | None] = [None] * 9  # of each attempt
        self.pause_s = 0.0  # before each token
        engine.decode = self.decode  # type: ignore[method-assign]

    async def decode(self, order: DecodeOrder) -> AsyncIterator[DecodeStep]:
        fail_after = self.fail_after.pop(0)
        first = order.num_hit_tokens // BLOCK
        parents = (root_key(NAMESPACE, order.request.cache_salt), *order.keys)
        yield self.store(order.keys[first:], parents[first:-1])
        tokens = list(order.request.prompt_token_ids)
        for number, token_id in enumerate(ANSWER):
            await asyncio.sleep(self.pause_s)
            if number == fail_after:
                raise EngineLostError("dropped")
            tokens.append(token_id)
            is_last = number == len(ANSWER) - 1
            if len(tokens) % BLOCK == 0:
                parent = keys_of(tuple(tokens))[-2]
                key = child_key(parent, tokens[-BLOCK:])
                yield self.store((key,), (parent,))
            yield DecodeStep((replace(SAID, finish_reason=FinishReason.STOP) if is_last else SAID,))

    def store(self, keys: tuple[BlockKey, ...], parents: tuple[BlockKey, ...]) -> DecodeStep:
        self.engine.storage.blocks.update(keys)
        return DecodeStep(writing=keys, parents=parents, durable=keys)


async def events_of(it: Cluster, request: Request) -> list[TokenEvent]:
    return [event async for event in it.service.generate(request)]


def test_events_count_the_decode_engines_tokens_and_its_blocks_are_the_next_turns_hits() -> None:
    async def scenario() -> None:
        async with cluster() as it:
            Speaker(it.decode[0])
            events = await events_of(it, opaque())
            assert len(events) == len(ANSWER), "what prefill has sampled is nobody's"
            await it.quiet()
            record = it.record(opaque())
            assert (record.num_generated_tokens, record.outcome) == (len(ANSWER), "finished")
            assert it.index.known() == keys_of(PROMPT + ANSWER)
            again = make_request("again", prompt=(*PROMPT, *ANSWER, 1), max_tokens=1)
            await it.run(again)
            assert it.record(again).num_hit_tokens == len(PROMPT + ANSWER)

    run_virtual(scenario())


@pytest.mark.parametrize("num_said", [0, 1, 5])
def test_an_answer_is_begun_anew_only_while_nothing_of_it_was_heard(num_said: int) -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(max_retries=3)) as it:
            Speaker(it.decode[0]).fail_after[0] = num_said
            if num_said:
                with pytest.raises(EngineLostError, match="dropped"):
                    await events_of(it, opaque())
                assert it.record(opaque()).outcome == "failed"
            else:
                assert len(await events_of(it, opaque())) == len(ANSWER)
                assert it.record(opaque()).num_retries == 1

    run_virtual(scenario())
