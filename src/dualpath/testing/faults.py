"""The faults of a scenario, carried out: on processes, memory, storage and clocks; the weather has the lasting ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from dualpath.core.ids import BlockKey
from dualpath.store.memory import MemoryStore
from dualpath.testing import checks
from dualpath.testing.front import Front
from dualpath.testing.gateways import SimGateway
from dualpath.testing.loop import VirtualLoop
from dualpath.testing.nodes import SimNode
from dualpath.testing.parts import Surroundings, engine_names
from dualpath.testing.scenario import NODE_FAULTS, Fault, Scenario


class Faults:
    """``excused``: objects that were lost or damaged from outside. ``down``: when a node's loss is expected."""

    def __init__(
        self,
        scenario: Scenario,
        loop: VirtualLoop,
        around: Surroundings,
        front: Front,
        nodes: Mapping[str, SimNode],
        gateways: Sequence[SimGateway],
        stores: Iterable[MemoryStore],
        log: Callable[[str], None],
    ) -> None:
        self._scenario, self._loop, self._around, self._log = scenario, loop, around, log
        self._front, self._nodes, self._gateways, self._stores = front, nodes, gateways, tuple(stores)
        self._dice = random.Random(f"world {scenario.seed}")
        self.excused: set[BlockKey] = set()
        self.down: checks.Downtimes = {}

    def begin(self, fault: Fault) -> None:
        self._log(f"fault {fault.number}: {fault.kind}, target {fault.target}, {fault.for_s} s, {fault.strength}")
        if fault.kind in NODE_FAULTS and not self._nodes:
            return
        match fault.kind:
            case "kill":
                self._kill_node(self._around.weather.node(fault))
            case "kill with scheduler":
                self._kill_with_scheduler(fault, 500)
            case "stop":
                self._nodes[self._around.weather.node(fault)].stop(fault.for_s)
            case "flip staging":
                self._flip_staging(fault)
            case "lose objects" | "damage objects":
                self._spoil_objects(fault)
            case "jump clock":
                self._loop.now_s += fault.for_s
            case "jump wall clock":
                self._front.jump_wall_clock(self._dice.uniform(-1e5, 1e5))
            case "restart scheduler":
                self._front.kill()
            case "kill gateway" | "stop gateway":
                gateway = self._gateways[fault.target % len(self._gateways)]
                gateway.kill() if fault.kind == "kill gateway" else gateway.stop(fault.for_s)
            case "stop scheduler":
                self._front.stop(fault.for_s)
            case _:
                self._around.weather.begin(fault)
                if fault.kind == "hang transfers":
                    self._hang(fault, True)
                self._loop.call_later(fault.for_s, self._end, fault)

    def _end(self, fault: Fault) -> None:
        self._around.weather.end(fault)
        if fault.kind == "hang transfers" and not self._around.weather.strength(
            fault.kind, self._around.weather.node(fault)
        ):
            self._hang(fault, False)

    def _kill_node(self, name: str) -> None:
        now_s = self._loop.now_s
        self.down.setdefault(name, []).append((now_s, now_s + self._scenario.restarts_after_s + 5.0))
        self._nodes[name].kill()

    def _kill_with_scheduler(self, fault: Fault, num_tries: int) -> None:
        """In the middle of a push, of which some comes when the next scheduler may be there."""
        name = self._around.weather.node(fault)
        pushes = [self._around.fabric.detain(e, fault.for_s) for e in engine_names(self._scenario, name)]
        if num_tries and not any(pushes):
            self._loop.call_later(0.002, self._kill_with_scheduler, fault, num_tries - 1)
            return
        self._kill_node(name)
        self._front.kill()

    def _hang(self, fault: Fault, is_hung: bool) -> None:
        fabric = self._around.fabric
        for engine_id in engine_names(self._scenario, self._around.weather.node(fault)):
            (fabric.hang if is_hung else fabric.unhang)(engine_id)

    def _flip_staging(self, fault: Fault) -> None:
        """One bit of a staging slot that is in use."""
        engines = sorted(self._around.engines)
        if not engines:
            return
        traffic = self._around.engines[engines[fault.target % len(engines)]].traffic
        slots = traffic.slots.granted
        if slots:
            view = traffic.slot_view(slots[self._dice.randrange(len(slots))])
            view[self._dice.randrange(len(view))] ^= 1 << self._dice.randrange(8)

    def _spoil_objects(self, fault: Fault) -> None:
        for store, key in objects_of(self._stores):
            if self._dice.random() >= fault.strength:
                continue
            self.excused.add(key)
            if fault.kind == "lose objects":
                MemoryStore.delete(store, key)
            else:
                data = bytearray(store.raw(key))
                data[self._dice.randrange(len(data))] ^= 1 << self._dice.randrange(8)
                store.put_raw(key, bytes(data))


def objects_of(stores: Iterable[MemoryStore]) -> list[tuple[MemoryStore, BlockKey]]:
    """What is stored now, whatever storage says of it."""
    return [(store, block.key) for store in stores for block in MemoryStore.list_blocks(store)]
