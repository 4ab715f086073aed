"""A cluster that says what it is told to: deterministic tokens, failures and pauses on command, iterators watched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.pause import PauseMode
from dualpath.core.plan import Role
from dualpath.core.request import FinishReason, RecordAnswer, RecordQuery, Request, RequestRecord, TokenEvent
from dualpath.core.stats import ClusterStats, EngineStats

EOS_ID = 257  # of init_model's tokenizer, whose other ids are byte values
Script = Callable[[Request], Sequence[int]]

STATS = ClusterStats(
    engines=(
        EngineStats(
            EngineId("pe0"),
            NodeId("n0"),
            Role.PREFILL,
            storage_read_bytes=100,
            kv_transfer_bytes={"decode_to_prefill": 10, "prefill_to_decode": 3},
            read_queue_tokens=64,
            staging_slots=8,
            staging_slots_used=2,
        ),
        EngineStats(
            EngineId("de0"),
            NodeId("n1"),
            Role.DECODE,
            storage_read_bytes=300,
            storage_write_bytes=50,
            kv_transfer_bytes={"decode_to_prefill": 5},
            blocks_corrupt=1,
            kv_corrupt=2,
            device_kv_bytes=1000,
            device_kv_used_bytes=400,
            device_kv_peak_bytes=900,
        ),
    ),
    num_queued_requests=1,
    num_running_requests=2,
    index_blocks=7,
)


def says(text: str | bytes, *, ends: bool = True) -> Script:
    """One token per byte of ``text``, then the end-of-text token."""
    ids = [*(text if isinstance(text, bytes) else text.encode())]
    return lambda _: [*ids, EOS_ID] if ends else ids


@dataclass
class FakeControl:
    """Implements dualpath.gateway.backend.ServerControl."""

    is_paused: bool = False
    weight_version: str = "0"
    asked: list[object] = field(default_factory=list)
    refusal: Exception | None = None
    aborted: Callable[[Collection[RequestId] | None], int] = lambda _: 0
    find: Callable[[str], Sequence[RequestId]] = lambda name: (RequestId(name),)
    may_see: Callable[[str, RequestId], bool] = lambda viewer, request_id: False
    recent: Callable[[int], list[RequestRecord]] = lambda limit: []
    missing: tuple[str, ...] = ()  # gateways
    in_phase: dict[str, int] | None = None  # of all gateways' requests

    async def pause(self, mode: PauseMode = PauseMode.ABORT) -> None:
        self.asked.append(("pause", mode))
        self.is_paused = True

    async def resume(self) -> None:
        self.asked.append("resume")
        self.is_paused = False

    async def update_weights(self, directory: str, version: str | None = None) -> str:
        self.asked.append(("update", directory, version))
        if self.refusal is not None:
            raise self.refusal
        self.weight_version = version or "1"
        return self.weight_version

    async def records(self, query: RecordQuery) -> RecordAnswer:
        found = [
            record
            for record in self.recent(10_000)
            if query.request_id in (None, record.request_id)
            and (query.viewer is None or self.may_see(query.viewer, record.request_id))
        ]
        return RecordAnswer(found[: query.limit], self.missing, self.in_phase if query.viewer is None else None)

    async def flush(self) -> None:
        self.asked.append("flush")

    async def abort(self, names: Collection[str] | None = None) -> int:
        request_ids = None if names is None else {found for name in names for found in self.find(name)}
        self.asked.append(("abort", request_ids))
        return self.aborted(request_ids)


@dataclass
class FakeBackend:
    """Implements dualpath.gateway.backend.Backend."""

    model_name: str = "fake"
    max_context_tokens: int = 1024
    script: Script = field(default_factory=lambda: says("Hello"))
    is_ready: bool = True
    is_soon_ready: bool = False
    found: tuple[str, ...] = ()  # problems
    refusal: Exception | None = None  # raised at the call
    failure: tuple[int, Exception] | None = None  # (tokens before it, raised from the iterator)
    hang_after: int | None = None  # tokens; then nothing ever comes
    pause_s: float = 0.0  # before each token
    num_hit_tokens: int = 0
    requests: list[Request] = field(default_factory=list)
    records: dict[RequestId, RequestRecord] = field(default_factory=dict)
    open_iterators: set[RequestId] = field(default_factory=set)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    callbacks: list[Callable[[RequestRecord], None]] = field(default_factory=list)
    control: FakeControl = field(default_factory=FakeControl)

    def __post_init__(self) -> None:
        self.control.recent = self.recent

    def ready(self) -> bool:
        return self.is_ready

    def accepts(self) -> bool:
        return self.is_ready or self.is_soon_ready

    def problems(self) -> tuple[str, ...]:
        return self.found

    def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        return self._stream(request)

    async def _stream(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        record = RequestRecord(request.request_id, time.time(), len(request.prompt_token_ids), self.num_hit_tokens)
        record.phases_s = {"prefilling": 0.5, "decoding": 1.0}
        self.records[request.request_id] = record
        self.open_iterators.add(request.request_id)
        outcome = "cancelled"
        try:
            async for event in self._tokens(request):
                record.num_generated_tokens += 1
                yield event
            outcome = "finished"
        except Exception as error:
            outcome, record.error = "failed", str(error)
            raise
        finally:
            self.open_iterators.discard(request.request_id)
            record.outcome, record.ttft_s, record.tpot_s = outcome, 0.1, 0.01
            for callback in self.callbacks:
                callback(record)

    async def _tokens(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        ids = list(self.script(request))[: request.sampling.max_tokens]
        for i, token_id in enumerate(ids):
            if self.failure is not None and self.failure[0] == i:
                raise self.failure[1]
            if self.hang_after == i:
                self.started.set()
                await asyncio.Event().wait()
            await asyncio.sleep(self.pause_s)
            event = self._event(request, token_id, is_last=i == len(ids) - 1)
            if i == 0 and (num := request.sampling.num_prompt_logprobs) is not None:
                told = [
                    (-1.0 - k, dict.fromkeys(range(num), -0.5), 40 + k)
                    for k in range(len(request.prompt_token_ids) - 1)
                ]
                event = replace(event, prompt_logprobs=tuple(told))
            yield event
            if event.finish_reason is not None:
                return

    def _event(self, request: Request, token_id: int, *, is_last: bool) -> TokenEvent:
        ends = token_id == EOS_ID or token_id in request.sampling.stop_token_ids
        reason = (FinishReason.STOP if ends else FinishReason.LENGTH) if is_last or ends else None
        num = request.sampling.num_logprobs
        if num is None:
            return TokenEvent(token_id, finish_reason=reason)
        top = {(token_id + k) % 256: -0.5 - k for k in range(num)}
        return TokenEvent(token_id, -0.5, top, reason)

    def record(self, request_id: RequestId) -> RequestRecord | None:
        return self.records.get(request_id)

    def recent(self, limit: int) -> list[RequestRecord]:
        return list(reversed(self.records.values()))[:limit]

    async def stats(self) -> ClusterStats:
        return STATS

    def on_finished(self, callback: Callable[[RequestRecord], None]) -> None:
        self.callbacks.append(callback)

    def outcomes(self) -> list[str]:
        return sorted(record.outcome for record in self.records.values())
