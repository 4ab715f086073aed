"""Pause, resume and abort on virtual time: what runs ends, or stays where it is, and nothing is lost or timed out."""

from __future__ import annotations

import asyncio

import pytest
from tests.engine.pair import Pair, prompt_of, run

from dualpath.core.errors import RequestAbortedError
from dualpath.core.ids import RequestId
from dualpath.core.pause import PauseMode
from dualpath.core.request import Request, SamplingParams


class _Client:
    """Reads one request's tokens in a task of its own."""

    def __init__(self, pair: Pair, name: str, num_tokens: int, num_prompt: int = 20) -> None:
        prompt = tuple(prompt_of(num_prompt, len(name)))
        self._params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        self.request = Request(RequestId(name), prompt, self._params)
        self.right = pair.book.truth.answer(prompt, num_tokens)
        pair.book.sequences[name] = ("", (*prompt, *self.right))
        self.tokens: list[int] = []
        self.task = asyncio.create_task(self._read(pair))

    async def _read(self, pair: Pair) -> None:
        async for event in pair.service.generate(self.request):
            self.tokens.append(event.token_id)

    async def until(self, num_tokens: int) -> None:
        while len(self.tokens) < num_tokens:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def test_kept_requests_stand_still_for_as_long_as_it_takes_and_go_on() -> None:
    async def scenario(pair: Pair) -> None:
        client = _Client(pair, "kept", 30)
        await client.until(5)
        await pair.service.control.pause(PauseMode.KEEP)
        await asyncio.sleep(1.0)  # what was on its way
        so_far = len(client.tokens)
        late = _Client(pair, "late one", 3)
        await asyncio.sleep(10_000.0)  # longer than every deadline
        assert len(client.tokens) == so_far
        assert not late.tokens
        assert pair.service.control.is_paused
        await pair.service.control.resume()
        await asyncio.gather(client.task, late.task)
        for one in (client, late):
            assert one.tokens == one.right
        record = pair.service.record(RequestId("kept"))
        assert record is not None
        assert record.num_retries == 0
        await pair.rest()

    run(scenario)


def test_a_request_without_a_token_waits_in_the_queue_meanwhile() -> None:
    async def scenario(pair: Pair) -> None:
        client = _Client(pair, "early", 6, num_prompt=100)
        await asyncio.sleep(0.02)
        assert not client.tokens
        await pair.service.control.pause(PauseMode.KEEP)
        await asyncio.sleep(1000.0)
        record = pair.service.record(RequestId("early"))
        assert record is not None
        assert (await pair.service.stats()).num_queued_requests == 1
        await pair.service.control.resume()
        await client.task
        assert client.tokens == client.right
        assert record.num_retries == 1
        await pair.rest()

    run(scenario, max_batch_tokens=16)


@pytest.mark.parametrize("was_kept", [False, True])
def test_aborted_requests_keep_the_tokens_they_have(was_kept: bool) -> None:
    async def scenario(pair: Pair) -> None:
        client = _Client(pair, "aborted", 200)
        await client.until(5)
        if was_kept:
            await pair.service.control.pause(PauseMode.KEEP)
        await pair.service.control.pause(PauseMode.ABORT)
        with pytest.raises(RequestAbortedError):
            await client.task
        assert client.tokens == client.right[: len(client.tokens)]
        assert 5 <= len(client.tokens) < 200
        await pair.service.control.resume()
        answer = await pair.ask([*client.request.prompt_token_ids, *client.tokens, 1])
        assert answer.num_hit_blocks >= 5, "what it had computed is a hit"
        await pair.rest()

    run(scenario)


@pytest.mark.parametrize("was_kept", [False, True])
def test_waiting_ends_when_what_runs_has_ended(was_kept: bool) -> None:
    async def scenario(pair: Pair) -> None:
        client = _Client(pair, "running", 40)
        await client.until(5)
        if was_kept:
            await pair.service.control.pause(PauseMode.KEEP)
        pausing = asyncio.create_task(pair.service.control.pause(PauseMode.WAIT))
        await asyncio.sleep(0.001)
        late = _Client(pair, "late one", 3)
        await pausing
        assert client.tokens == client.right
        assert not late.tokens
        await pair.service.control.resume()
        await late.task
        await pair.rest()

    run(scenario)


def test_resuming_ends_the_waiting() -> None:
    async def scenario(pair: Pair) -> None:
        client = _Client(pair, "running", 200)
        await client.until(5)
        pausing = asyncio.create_task(pair.service.control.pause(PauseMode.WAIT))
        await asyncio.sleep(0.1)
        await pair.service.control.resume()
        await pausing
        assert len(client.tokens) < 200
        await client.task
        await pair.rest()

    run(scenario)


def test_some_are_aborted_and_the_others_never_know() -> None:
    async def scenario(pair: Pair) -> None:
        one, other = _Client(pair, "one", 100), _Client(pair, "other", 20)
        await one.until(3)
        assert pair.service.control.abort_here([RequestId("one"), RequestId("nobody")]) == 1
        with pytest.raises(RequestAbortedError):
            await one.task
        await other.task
        assert other.tokens == other.right
        assert pair.service.control.abort_here() == 0
        await pair.rest()

    run(scenario)


def test_all_may_be_asked_twice_and_in_any_order() -> None:
    async def scenario(pair: Pair) -> None:
        control = pair.service.control
        await control.resume()
        client = _Client(pair, "kept", 30)
        await client.until(3)
        for mode in (PauseMode.KEEP, PauseMode.KEEP):
            await control.pause(mode)
        await control.resume()
        await control.resume()
        await client.task
        assert client.tokens == client.right
        await pair.rest()

    run(scenario)
