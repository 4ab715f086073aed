"""Faults that are under way: what they do to each transfer, each object, each call, drawn from the seed."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

from dualpath.core.errors import StoreError
from dualpath.core.ids import BlockKey, PeerId
from dualpath.testing.faulty_store import FaultPlan
from dualpath.testing.scenario import Fault
from dualpath.traffic.contract import Op
from dualpath.traffic.fake_transport import Fate

_LATE_S = (0.0, 0.01, 0.05, 0.15, 0.4, 1.0, 4.0)


class Sometimes:
    """Holds some keys and not others, always the same ones."""

    def __init__(self, strength: float, salt: int) -> None:
        self._strength, self._salt = strength, salt

    def __contains__(self, key: object) -> bool:
        assert isinstance(key, bytes)
        return zlib.crc32(key, self._salt) % 1000 < self._strength * 1000


class Weather:
    """One for the world. ``nodes`` and ``engines`` are names, in the order that faults count them."""

    def __init__(self, seed: int, nodes: Sequence[str], engines: dict[str, str]) -> None:
        self._dice = random.Random(f"weather {seed}")
        self.directory_dice = random.Random(f"directory {seed}")  # of calls that came to the worlds later than others
        self.nodes = nodes
        self._node_of = engines  # engine -> node
        self.active: dict[Fault, None] = {}
        self._plans = {node: (FaultPlan(), FaultPlan()) for node in nodes}

    def node(self, fault: Fault) -> str:
        return self.nodes[fault.target % len(self.nodes)]

    def node_of(self, engine_id: str) -> str:
        return self._node_of[engine_id]

    def begin(self, fault: Fault) -> None:
        self.active[fault] = None
        self._plan(self.node(fault))

    def end(self, fault: Fault) -> None:
        self.active.pop(fault, None)
        self._plan(self.node(fault))

    def strength(self, kind: str, node: str | None = None) -> float:
        """How strong the strongest fault of this kind is now, there; 0: none."""
        found = (f.strength for f in self.active if f.kind == kind and node in (None, self.node(f)))
        return max(found, default=0.0)

    def meets(self, kind: str, node: str | None = None) -> bool:
        """Does it meet this one?"""
        strength = self.strength(kind, node)
        return strength > 0 and self._dice.random() < strength

    def parts(self, gateway: int, node: str) -> bool:
        """Does nothing pass between these two, of which others reach each?"""
        return any(
            self.node(fault) == node and fault.target // len(self.nodes) % 2 == gateway % 2
            for fault in self.active
            if fault.kind == "part gateway"
        )

    # -- the compute network ------------------------------------------------------------------------------------------

    def judge(self, op: Op, initiator: PeerId, peer: PeerId, num_bytes: int) -> Fate:
        """The fate of a transfer. Any may leave bytes behind when it ends badly."""
        dice = self._dice
        nodes = [self._node_of[end.rpartition(".")[0]] for end in (initiator, peer)]
        late_s = tuple(dice.choice([None, *_LATE_S, *_LATE_S]) for _ in range(3))
        delay_s = dice.choice([0.0, 0.0, dice.uniform(0, 0.004)])

        def meets(kind: str) -> bool:
            return any(self.meets(kind, node) for node in nodes)

        if meets("fail transfers"):
            return Fate(delay_s, fails=True, late_s=late_s, num_moved=dice.randint(0, 3))
        if meets("tear on network"):
            return Fate(delay_s, late_s=late_s, num_missing=dice.randint(1, 4))
        if meets("flip on network"):
            return Fate(
                delay_s, late_s=late_s, flips=[dice.randrange(8 * num_bytes) for _ in range(dice.randint(1, 3))]
            )
        return Fate(delay_s, late_s=late_s)

    # -- storage ------------------------------------------------------------------------------------------------------

    def plans(self, node: str) -> tuple[FaultPlan, FaultPlan]:
        """(reads, writes) of a node's I/O; they change with the weather."""
        return self._plans[node]

    def _plan(self, node: str) -> None:
        for plan, direction in zip(self._plans[node], ("reads", "writes"), strict=True):
            plan.failing = self._keys(f"fail {direction}", node)
            plan.hanging = self._keys(f"hang {direction}", node)
            plan.corrupt = self._keys(f"flip {direction}", node)
            plan.torn = self._keys(f"tear {direction}", node)
            plan.leak_after_s = self._dice.uniform(0.3, 1.5)  # about when a transfer's deadline has passed
            plan.delay_s = 0.5 * self.strength("slow storage", node)
            plan.full = direction == "writes" and self.strength("full", node) > 0

    def _keys(self, kind: str, node: str) -> Sometimes | set[BlockKey]:
        faults = [f for f in self.active if f.kind == kind and self.node(f) == node]
        return Sometimes(max(f.strength for f in faults), faults[0].number) if faults else set()


def directory_error(key: BlockKey | None) -> StoreError:
    return StoreError(f"block {key.hex() if key else ''}: injected")
