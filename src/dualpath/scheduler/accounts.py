"""What the scheduler knows of every engine: requests and tokens assigned, and tokens in each node's reading queue.

Kept by the scheduler itself, so a decision never waits for an engine's answer. Everything added is removed again under
the same name; with no request in the system every number is zero, and ``check_integrity`` can say so at any moment.
Event loop only; nothing blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NewType

from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.plan import Role
from dualpath.engine.api import EngineInfo
from dualpath.scheduler.snapshot import EngineSnapshot, group_of

ReadId = NewType("ReadId", int)


@dataclass(slots=True)
class _Account:
    info: EngineInfo
    requests: dict[RequestId, int] = field(default_factory=dict)  # request -> its tokens
    num_tokens: int = 0  # the sum, kept


class Accounts:
    """Assignments by (request, engine); readings by an id of their own."""

    def __init__(self, engines: Iterable[EngineInfo]) -> None:
        self._accounts = {info.engine_id: _Account(info) for info in engines}
        self._reads: dict[ReadId, tuple[NodeId, int]] = {}
        self._read_queue_tokens: dict[NodeId, int] = {}
        self._next_read = 0

    def assign(self, request_id: RequestId, engine_id: EngineId, num_tokens: int) -> None:
        """The request is the engine's from now on. Once per (request, engine)."""
        account = self._accounts[engine_id]
        if request_id in account.requests:
            raise ValueError(f"{request_id} is already assigned to {engine_id}")
        account.requests[request_id] = num_tokens
        account.num_tokens += num_tokens

    def grow(self, request_id: RequestId, engine_id: EngineId, num_tokens: int) -> None:
        """The request has become longer than it was assigned with; shorter or released: no change."""
        account = self._accounts[engine_id]
        known = account.requests.get(request_id)
        if known is not None and num_tokens > known:
            account.requests[request_id] = num_tokens
            account.num_tokens += num_tokens - known

    def release(self, request_id: RequestId, engine_id: EngineId) -> bool:
        """The engine holds nothing of the request any more. False: it held nothing before. Idempotent."""
        account = self._accounts[engine_id]
        num_tokens = account.requests.pop(request_id, None)
        if num_tokens is None:
            return False
        account.num_tokens -= num_tokens
        return True

    def start_read(self, node_id: NodeId, num_tokens: int) -> ReadId:
        """A set of blocks joins the node's storage reading queue."""
        read_id = ReadId(self._next_read)
        self._next_read += 1
        self._reads[read_id] = (node_id, num_tokens)
        self._read_queue_tokens[node_id] = self._read_queue_tokens.get(node_id, 0) + num_tokens
        return read_id

    def end_read(self, read_id: ReadId) -> bool:
        """The set is read, failed or given up. False: it had ended before. Idempotent."""
        read = self._reads.pop(read_id, None)
        if read is None:
            return False
        node_id, num_tokens = read
        self._read_queue_tokens[node_id] -= num_tokens
        return True

    def read_queue_tokens(self, node_id: NodeId) -> int:
        return self._read_queue_tokens.get(node_id, 0)

    def snapshot(self, engine_id: EngineId) -> EngineSnapshot:
        account = self._accounts[engine_id]
        info = account.info
        return EngineSnapshot(
            engine_id=info.engine_id,
            node_id=info.node_id,
            group_id=group_of(info.node_id, info.role),
            role=info.role,
            num_requests=len(account.requests),
            num_tokens=account.num_tokens,
            read_queue_tokens=self.read_queue_tokens(info.node_id),
            free_device_tokens=info.device_kv_tokens - account.num_tokens if info.role is Role.DECODE else 0,
        )

    @property
    def is_idle(self) -> bool:
        """True when nothing is assigned and nothing is being read."""
        return not self._reads and not any(account.requests for account in self._accounts.values())

    def check_integrity(self) -> None:
        """Raise AssertionError where a kept sum differs from what it sums up."""
        for engine_id, account in self._accounts.items():
            actual = sum(account.requests.values())
            assert account.num_tokens == actual, f"{engine_id}: {account.num_tokens} tokens kept, {actual} assigned"
        queued: dict[NodeId, int] = dict.fromkeys(self._read_queue_tokens, 0)
        for node_id, num_tokens in self._reads.values():
            queued[node_id] += num_tokens
        assert queued == self._read_queue_tokens, f"reading queues {self._read_queue_tokens}, but reads sum to {queued}"
