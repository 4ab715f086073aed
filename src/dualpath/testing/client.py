"""Simulated agents: each turn sends all that was said, checks every token, goes on or goes away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dualpath.core.errors import DualPathError, RequestAbortedError
from dualpath.core.ids import RequestId
from dualpath.core.request import Request, SamplingParams, TokenEvent
from dualpath.testing.answer_check import AnswerCheck
from dualpath.testing.hash_model import BLOCK_TOKENS, VOCAB, Truth
from dualpath.testing.scenario import Agent, Turn
from dualpath.testing.server import ConnectionLost, SimServer
from dualpath.testing.weights import weights_of

TURN_S = 300.0  # no request takes longer, whatever happens
_SLOWLY_S = 0.7


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that ended with an error of ours."""

    request_id: str
    start_s: float
    end_s: float
    error: str


@dataclass(slots=True)
class Asked:
    """A request, and what the scheduler has seen of its answer."""

    tenant: str
    prompt: tuple[int, ...]
    num_tokens: int
    generated: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Book:
    """What all agents of a world have seen."""

    truth: Truth = field(default_factory=Truth)
    sequences: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)  # request -> tenant, all tokens
    asked: dict[str, Asked] = field(default_factory=dict)  # where weights may change, so that nobody knows all tokens
    num_mixed: int = 0  # answers with tokens of several weights
    failures: list[Failure] = field(default_factory=list)
    num_answers: int = 0
    num_aborted: int = 0
    num_hit_tokens: int = 0
    num_retries: int = 0
    paths: dict[str, int] = field(default_factory=dict)


class Violation(AssertionError):
    """Something that must never happen."""


class Client:
    """One agent."""

    def __init__(
        self, seed: int, agent: Agent, front: SimServer, book: Book, log: Callable[[str], None], weights: Sequence[str]
    ) -> None:
        """``weights``: all that there may be."""
        self._weights = weights
        self._agent, self._front, self._book, self._log = agent, front, book, log
        self._dice = random.Random(f"agent {seed} {agent.number}")
        self._opening = random.Random(f"prefix {seed} {agent.prefix}")
        self._num_requests = 0

    async def run(self, now_s: Callable[[], float]) -> None:
        await asyncio.sleep(self._agent.start_s)
        prompt: list[int] = []
        for turn in self._agent.turns:
            prompt += self._more(turn, is_first=not prompt)
            await asyncio.sleep(turn.pause_s)
            answer = await self._turn(turn, tuple(prompt), now_s)
            if answer is None:
                return
            prompt += answer

    def _more(self, turn: Turn, *, is_first: bool) -> list[int]:
        dice = self._opening if is_first else self._dice
        return [dice.randrange(VOCAB) for _ in range(turn.num_appended)]

    async def _turn(self, turn: Turn, prompt: tuple[int, ...], now_s: Callable[[], float]) -> list[int] | None:
        """The whole answer; None: the conversation is over. Another connection where the server's process has ended."""
        while True:
            await self._front.is_up.wait()
            self._num_requests += 1
            request = self._request(prompt, turn)
            self._book.asked[request.request_id] = Asked(self._agent.tenant, prompt, turn.num_tokens)
            start_s = now_s()
            try:
                async with asyncio.timeout(TURN_S):
                    answer = await self._read(request, turn)
            except ConnectionLost:
                self._log(f"{request.request_id} lost its connection")
                continue
            except RequestAbortedError:
                self._book.num_aborted += 1
                self._log(f"{request.request_id} was aborted")
                return None
            except DualPathError as error:
                self._log(f"{request.request_id} failed: {error}")
                self._book.failures.append(Failure(request.request_id, start_s, now_s(), f"{error!r}"))
                return None
            except TimeoutError:
                raise Violation(f"{request.request_id}: no end after {TURN_S:g} s") from None
            if answer is None:
                self._book.num_aborted += 1
                self._log(f"{request.request_id} went away")
                return None
            self._check_record(request, prompt)
            return answer

    async def _read(self, request: Request, turn: Turn) -> list[int] | None:
        """Check token by token. None: gone before the end."""
        check, answer = AnswerCheck(self._book.truth, request.prompt_token_ids), list[int]()
        async with self._front.stream(request) as events:
            while len(answer) != turn.abort_after:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                self._check_token(request, event, len(answer), check)
                answer.append(event.token_id)
                if event.finish_reason is not None:
                    if len(answer) != turn.num_tokens:
                        raise Violation(f"{request.request_id} ended after {len(answer)} of {turn.num_tokens} tokens")
                    return answer
                if turn.reads_slowly:
                    await asyncio.sleep(_SLOWLY_S)
        return None

    def _check_token(self, request: Request, event: TokenEvent, index: int, check: AnswerCheck) -> None:
        names = self._named(request, index)
        expected = check.expected(names)
        if not check.take(event.token_id, names):
            told = f", by the weights {names}" if len(self._weights) > 1 else ""
            raise Violation(f"{request.request_id}: token {index} is {event.token_id}, right is {expected}{told}")

    def _named(self, request: Request, index: int) -> Sequence[str]:
        """By which weights the token is said to be; all, where the one who knew it is gone."""
        record = self._front.record(request) if len(self._weights) > 1 else None
        if record is None:
            return self._weights
        versions = [span.version for span in record.weight_versions if span.start <= index < span.end]
        if len(versions) != 1:
            raise Violation(f"{request.request_id}: token {index} is of the weights {versions}")
        return [weights_of(versions[0])]

    def _check_record(self, request: Request, prompt: tuple[int, ...]) -> None:
        """Hits are blocks of this tenant's own earlier sequences, nobody else's."""
        record = self._front.record(request)
        if record is None:
            raise Violation(f"{request.request_id} has no record")
        earlier = [
            (*asked.prompt, *asked.generated)
            for request_id, asked in self._book.asked.items()
            if asked.tenant == self._agent.tenant and (request_id != request.request_id or record.num_retries)
        ]
        most = max((_common(tokens, prompt) for tokens in earlier), default=0)
        most = min(most, len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        if record.num_hit_tokens > most:
            raise Violation(f"{request.request_id}: {record.num_hit_tokens} tokens hit, only {most} can be known")
        book = self._book
        book.num_answers += 1
        book.num_mixed += len(record.weight_versions) > 1
        book.num_hit_tokens += record.num_hit_tokens
        book.num_retries += record.num_retries
        book.paths[record.path] = book.paths.get(record.path, 0) + 1
        self._log(
            f"{request.request_id} right: {record.path}, {record.num_hit_tokens} of {len(prompt)} hit, "
            f"{record.num_retries} retries"
        )

    def _request(self, prompt: tuple[int, ...], turn: Turn) -> Request:
        name = RequestId(f"a{self._agent.number}.{self._num_requests}")
        params = SamplingParams(max_tokens=turn.num_tokens, temperature=0.0, ignore_eos=True)
        return Request(name, prompt, params, self._agent.tenant)


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the common beginning."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))
