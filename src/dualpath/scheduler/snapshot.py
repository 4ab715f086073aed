"""What a policy may know of an engine at the moment of a decision: plain numbers, nothing live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType, Protocol

from dualpath.core.ids import EngineId, NodeId
from dualpath.core.plan import Role

GroupId = NewType("GroupId", str)  # all engines of one role on one node (paper section 6)


def group_of(node_id: NodeId, role: Role) -> GroupId:
    return GroupId(f"{node_id}/{role.value}")


class EngineLoad(Protocol):
    """What the choices read. A policy only reads: what it hands out in one fetch it counts by itself.

    ``EngineSnapshot`` is one; so is the engine of a simulator, which then needs no copy for every decision.
    """

    @property
    def engine_id(self) -> EngineId: ...
    @property
    def num_requests(self) -> int: ...  # seq_e
    @property
    def num_tokens(self) -> int: ...  # tok_e
    @property
    def read_queue_tokens(self) -> int: ...  # read_q of its node
    @property
    def free_device_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """One engine's load as it reports it on a fetch (paper section 6)."""

    engine_id: EngineId
    node_id: NodeId
    group_id: GroupId
    role: Role
    num_requests: int = 0  # seq_e: unfinished requests assigned to the engine
    num_tokens: int = 0  # tok_e: their total tokens
    read_queue_tokens: int = 0  # read_q: tokens waiting in the storage reading queue of its node
    free_device_tokens: int = 0  # decode engines: tokens that the device KV pool can still take
