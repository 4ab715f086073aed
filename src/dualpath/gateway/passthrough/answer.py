"""A request that passes through, as ``gateway.generation_response`` runs it: a job of pieces, a writer of them.

An HTTP request with several choices or prompts is several requests for the scheduler, each with an exchange of its own;
``gateway.passthrough.choices`` puts their answers together.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from dualpath.core.exchange import Exchange, Exchanges, RefusedError
from dualpath.core.request import Request
from dualpath.gateway.answer_writer import AnswerWriter
from dualpath.gateway.backend import Backend
from dualpath.gateway.errors import ApiError
from dualpath.gateway.job import merged_streams, traced
from dualpath.gateway.openai.shapes import CachedTokens, Usage
from dualpath.gateway.passthrough.dialects import Dialect


@dataclass(frozen=True, slots=True)
class Part:
    """One choice. ``exchange`` is open as long as the request runs."""

    request: Request
    exchange: Exchange


class Piece(NamedTuple):
    choice: int  # its index
    content: bytes


@dataclass(frozen=True, slots=True)
class PassthroughJob:
    """Parts are ordered by prompt, ``num_per_prompt`` of each."""

    job_id: str
    parts: tuple[Part, ...]
    num_per_prompt: int
    exchanges: Exchanges

    @property
    def is_stream(self) -> bool:
        return self.parts[0].exchange.is_stream

    async def deltas(self, backend: Backend) -> AsyncGenerator[Piece, None]:
        """The answers' pieces as they come. Closing the generator ends the requests everywhere."""
        streams = [self._pieces(backend, index, part) for index, part in enumerate(self.parts)]
        async with aclosing(streams[0] if len(streams) == 1 else merged_streams(streams)) as merged:
            async for piece in merged:
                yield piece

    async def _pieces(self, backend: Backend, index: int, part: Part) -> AsyncGenerator[Piece, None]:
        with self.exchanges.holding(part.request.request_id, part.exchange):
            try:
                async with aclosing(cast(Any, backend.generate(traced(part.request)))) as events:
                    async for event in events:
                        for content in part.exchange.take(is_last=event.finish_reason is not None):
                            yield Piece(index, content)
            except RefusedError as error:
                raise refusal(error) from error

    def usage(self, backend: Backend) -> Usage:
        """As OpenAI counts: a prompt once, however many choices it has; what each choice generated."""
        records = [backend.record(part.request.request_id) for part in self.parts]
        num_prompt = sum(len(part.request.prompt_token_ids) for part in self.parts[:: self.num_per_prompt])
        num_made = sum(record.num_generated_tokens for record in records if record is not None)
        num_cached = sum(record.num_hit_tokens for record in records[:: self.num_per_prompt] if record is not None)
        return Usage(num_prompt, num_made, num_prompt + num_made, CachedTokens(num_cached))


@dataclass(slots=True)
class PassthroughWriter(AnswerWriter):
    """Of one choice: what vLLM says, but for the counts. ``body``: the client's own."""

    dialect: Dialect
    body: Mapping[str, Any]
    job: PassthroughJob
    backend: Backend
    _whole: list[bytes] = field(default_factory=list)

    @property
    def ping(self) -> bytes:  # type: ignore[override]
        return self.dialect.ping

    def chunk(self, delta: Any) -> bytes:
        if b'"usage"' not in delta.content:  # most have none, and ours costs a look at the records
            return bytes(delta.content)
        return self.dialect.event_for_client(delta.content, self._num_cached, self.body)

    def end(self, usage: Usage) -> bytes:
        return b""

    def failed(self, error: ApiError) -> bytes:
        return self.dialect.failed(error)

    def add(self, delta: Any) -> None:
        self._whole.append(delta.content)

    def whole(self, usage: Usage) -> bytes:
        return self.dialect.whole_for_client(b"".join(self._whole), self._num_cached)

    @property
    def _num_cached(self) -> int:
        return self.job.usage(self.backend).prompt_tokens_details.cached_tokens


def refusal(error: RefusedError) -> ApiError:
    """What the server has said, in the shape of the API that was asked."""
    return ApiError(error.status, str(error), param=error.param, code=error.code)
