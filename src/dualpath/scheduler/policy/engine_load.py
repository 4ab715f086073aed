"""What a policy knows of an engine: plain numbers, kept up to date by whoever places requests on it."""

from __future__ import annotations

from typing import NewType

from dualpath.core.ids import EngineId, NodeId
from dualpath.core.plan import Role

GroupId = NewType("GroupId", str)  # all engines of one role on one node (paper section 6)


def group_of(node_id: NodeId, role: Role) -> GroupId:
    return GroupId(f"{node_id}/{role.value}")


class EngineLoad:
    """One engine's load. A choice only reads: what it hands out in one fetch it counts by itself.

    The live scheduler has one for each engine; the engines of the simulator are ones.
    """

    __slots__ = ("engine_id", "free_device_tokens", "group_id", "num_requests", "num_tokens", "read_queue_tokens")

    def __init__(self, engine_id: EngineId, group_id: GroupId, free_device_tokens: int = 0) -> None:
        self.engine_id = engine_id
        self.group_id = group_id
        self.num_requests = 0  # seq_e: unfinished requests assigned to the engine
        self.num_tokens = 0  # tok_e: their total tokens
        self.read_queue_tokens = 0  # read_q: tokens waiting in the storage reading queue of its node
        self.free_device_tokens = free_device_tokens  # decode engines: tokens that device memory can still take
