"""What the scheduler knows of every engine: requests and tokens assigned, and tokens in each node's reading queue.

Kept by the scheduler itself, so a decision never waits for an engine's answer. Everything added is removed again under
the same name; with no request in the system every number is zero, and ``check_integrity`` can say so at any moment.
The numbers are those that the waiting room chooses by; here is what they are made of. Event loop only; nothing blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NewType

from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.plan import Role
from dualpath.protocol.api import EngineInfo
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.policy.engine_load import EngineLoad, GroupId, group_of
from dualpath.scheduler.policy.systems import Assignment
from dualpath.scheduler.policy.waiting import Scope
from dualpath.scheduler.policy.waiting_room import WaitingRoom

ReadId = NewType("ReadId", int)


@dataclass(slots=True)
class _Engine:
    info: EngineInfo
    load: EngineLoad
    requests: dict[RequestId, int] = field(default_factory=dict)  # request -> its tokens


class EngineLoads:
    """Assignments by (request, engine); readings by an id of their own.

    ``room`` is the waiting room over these engines, ``scope`` all prefill engines that are there.
    """

    def __init__(self, engines: Iterable[EngineInfo], config: SchedulerConfig | None = None) -> None:
        config = config or SchedulerConfig()
        self._engines = {
            info.engine_id: _Engine(info, EngineLoad(info.engine_id, _group_id(info, config), _device_tokens(info)))
            for info in engines
        }
        self._on_node: dict[NodeId, list[_Engine]] = {}
        for engine in self._engines.values():
            self._on_node.setdefault(engine.info.node_id, []).append(engine)
        self.groups: dict[GroupId, list[EngineInfo]] = {}  # of decode engines, each with a queue of its own
        for engine in self._of(Role.DECODE):
            self.groups.setdefault(engine.load.group_id, []).append(engine.info)
        self.scope = Scope([engine.load for engine in self._of(Role.PREFILL)], config.prefill_limits)
        self.room = WaitingRoom(
            [(group_id, [self.of(info.engine_id) for info in infos]) for group_id, infos in self.groups.items()],
            config.prefill_limits,
            config.prefill_choice,
            config.decode_choice,
        )
        self._num_engines: dict[RequestId, int] = {}  # that a request is assigned to
        self._reads: dict[ReadId, tuple[NodeId, int]] = {}
        self._read_queue_tokens: dict[NodeId, int] = {}
        self._next_read = 0

    def _of(self, role: Role) -> list[_Engine]:
        return [engine for engine in self._engines.values() if engine.info.role is role]

    def of(self, engine_id: EngineId) -> EngineLoad:
        return self._engines[engine_id].load

    def assign(self, request_id: RequestId, engine_id: EngineId, num_tokens: int, *, is_counted: bool = False) -> None:
        """The request is the engine's from now on. Once per (request, engine). ``is_counted``: the room placed it."""
        engine = self._engines[engine_id]
        if request_id in engine.requests:
            raise ValueError(f"{request_id} is already assigned to {engine_id}")
        engine.requests[request_id] = num_tokens
        self._num_engines[request_id] = self._num_engines.get(request_id, 0) + 1
        if is_counted:
            return
        if engine.info.role is Role.PREFILL:
            self.scope.add(engine.load, 1, num_tokens)
        else:
            self.room.assign_decode(engine.load, num_tokens)

    def is_known(self, request_id: RequestId) -> bool:
        """Whether it is assigned to any engine."""
        return request_id in self._num_engines

    def has(self, request_id: RequestId, engine_id: EngineId) -> bool:
        return request_id in self._engines[engine_id].requests

    def grow(self, request_id: RequestId, engine_id: EngineId, num_tokens: int) -> None:
        """The request has become longer than it was assigned with; shorter or released: no change."""
        engine = self._engines[engine_id]
        known = engine.requests.get(request_id)
        if known is None or num_tokens <= known:
            return
        engine.requests[request_id] = num_tokens
        if engine.info.role is Role.PREFILL:
            self.scope.add(engine.load, 0, num_tokens - known)
        else:
            self.room.grow_decode(engine.load, num_tokens - known)

    def release(self, request_id: RequestId, engine_id: EngineId) -> bool:
        """The engine holds nothing of the request any more. False: it held nothing before. Idempotent."""
        engine = self._engines[engine_id]
        num_tokens = engine.requests.pop(request_id, None)
        if num_tokens is None:
            return False
        self._num_engines[request_id] -= 1
        if not self._num_engines[request_id]:
            del self._num_engines[request_id]
        if engine.info.role is Role.PREFILL:
            self.scope.add(engine.load, -1, -num_tokens)
        else:
            self.room.release_decode(engine.load, num_tokens, num_tokens)
        return True

    def start_read(self, node_id: NodeId, num_tokens: int) -> ReadId:
        """A set of blocks joins the node's storage reading queue."""
        read_id = ReadId(self._next_read)
        self._next_read += 1
        self._reads[read_id] = (node_id, num_tokens)
        self._queue_grows(node_id, num_tokens)
        return read_id

    def end_read(self, read_id: ReadId) -> bool:
        """The set is read, failed or given up. False: it had ended before. Idempotent."""
        read = self._reads.pop(read_id, None)
        if read is None:
            return False
        node_id, num_tokens = read
        self._queue_grows(node_id, -num_tokens)
        return True

    def _queue_grows(self, node_id: NodeId, num_tokens: int) -> None:
        now = self._read_queue_tokens[node_id] = self._read_queue_tokens.get(node_id, 0) + num_tokens
        for engine in self._on_node.get(node_id, ()):
            self.scope.queue_is(engine.load, now)

    def read_queue_tokens(self, node_id: NodeId) -> int:
        return self._read_queue_tokens.get(node_id, 0)

    @property
    def is_idle(self) -> bool:
        """True when nothing is assigned and nothing is being read."""
        return not self._reads and not any(engine.requests for engine in self._engines.values())

    def check_integrity(self) -> None:
        """Raise AssertionError where a kept number differs from what it is made of."""
        for engine_id, engine in self._engines.items():
            load, actual = engine.load, sum(engine.requests.values())
            assert load.num_tokens == actual, f"{engine_id}: {load.num_tokens} tokens kept, {actual} assigned"
            assert load.num_requests == len(engine.requests), f"{engine_id}: {load.num_requests} requests kept"
            if engine.info.role is Role.DECODE:
                assert load.free_device_tokens == engine.info.device_kv_tokens - actual, f"{engine_id}: memory"
        num_engines = Counter(request_id for engine in self._engines.values() for request_id in engine.requests)
        assert num_engines == self._num_engines, "requests known, and not assigned"
        queued: dict[NodeId, int] = dict.fromkeys(self._read_queue_tokens, 0)
        for node_id, num_tokens in self._reads.values():
            queued[node_id] += num_tokens
        assert queued == self._read_queue_tokens, f"reading queues {self._read_queue_tokens}, but reads sum to {queued}"


def _group_id(info: EngineInfo, config: SchedulerConfig) -> GroupId:
    """Decode engines with one private queue: those of a node; in turn, every engine has its own."""
    is_alone = config.decode_choice is Assignment.ROUND_ROBIN
    return GroupId(info.engine_id) if is_alone else group_of(info.node_id, info.role)


def _device_tokens(info: EngineInfo) -> int:
    return info.device_kv_tokens if info.role is Role.DECODE else 0
