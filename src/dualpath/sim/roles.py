"""A simulated cluster whose nodes can change role: every node has engines of both, one kind of which takes requests.

Built from a spec with as many prefill as decode nodes: node i of each are one and the same, with one storage NIC, one
memory and one compute NIC for each GPU. A change is: no new requests, finish, wait ``switch_s``, take requests in the
other role. ``scheduler.policy.role_switch`` says when; without it nothing here is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dualpath.core.errors import ConfigError
from dualpath.core.ids import NodeId
from dualpath.core.plan import Role
from dualpath.scheduler.policy import role_switch
from dualpath.scheduler.policy.role_switch import NodeLoad, RoleChange, RoleSwitchSettings, RoleSwitchState, RoleWindow
from dualpath.scheduler.policy.systems import SYSTEMS, Assignment
from dualpath.sim.cost import ModelCost
from dualpath.sim.engines.decode import DecodeEngine
from dualpath.sim.engines.prefill import PrefillEngine
from dualpath.sim.requests.agenda import NOTHING, Event, Events
from dualpath.sim.role_demand import DemandMeter
from dualpath.sim.simulation import Simulation, prepare
from dualpath.sim.spec import SimSpec
from dualpath.trace.trajectory import Trajectory

LOOKS = 5  # at queues, in every window


@dataclass(slots=True)
class SwitchingNode:
    """A node with both kinds of engines; ``role``: what it takes requests as, or will."""

    name: NodeId
    prefill: list[PrefillEngine]
    decode: list[DecodeEngine]
    role: Role
    is_draining: bool = False
    joins_s: float | None = None  # drained, and takes requests from then on

    @property
    def is_changing(self) -> bool:
        return self.is_draining or self.joins_s is not None

    def engines(self, role: Role) -> Sequence[PrefillEngine | DecodeEngine]:
        return self.prefill if role is Role.PREFILL else self.decode

    def num_requests(self) -> int:
        """On its engines of both roles."""
        return sum(one.num_requests for one in self.prefill) + sum(one.num_requests for one in self.decode)

    def num_tokens(self) -> int:
        return sum(one.num_tokens for one in self.engines(self.role))


@dataclass(frozen=True, slots=True)
class Changed:
    """A node's change, for the report."""

    asked_s: float
    node: NodeId
    role: Role


class RoleController:
    """Measures, asks the policy, and carries out what it says."""

    def __init__(self, simulation: Simulation, settings: RoleSwitchSettings, switch_s: float, num_prefill: int) -> None:
        self.changes: list[Changed] = []
        self._simulation, self._settings, self._switch_s = simulation, settings, switch_s
        self._state = RoleSwitchState(changed_s=0.0)
        self.nodes = _merged(simulation)
        self._meter = DemandMeter(simulation)
        for index, node in enumerate(self.nodes):
            node.role = Role.PREFILL if index < num_prefill else Role.DECODE
            self._close(node, Role.DECODE if node.role is Role.PREFILL else Role.PREFILL)
        self._renew_leaders(0.0)

    def count(self, role: Role) -> int:
        """Nodes that take requests in the role."""
        return sum(1 for node in self.nodes if node.role is role and not node.is_changing)

    def look(self, now_s: float, is_window_end: bool) -> Events:
        """Every fraction of a window; at its end the policy decides."""
        self._meter.look()
        events = self._go_on(now_s)
        if is_window_end:
            change, self._state = role_switch.decide(self._window(now_s), self._state, self._settings)
            if change is not None:
                events = [*events, *self._begin(change, now_s)]
        return events

    def _window(self, now_s: float) -> RoleWindow:
        prefill, decode = self._meter.take()
        stable = [node for node in self.nodes if not node.is_changing]
        loads = [NodeLoad(node.name, node.role, node.num_tokens()) for node in stable]
        return RoleWindow(now_s, prefill, decode, loads, len(self.nodes) - len(stable))

    def _begin(self, change: RoleChange, now_s: float) -> Events:
        """It takes no more requests."""
        node = next(one for one in self.nodes if one.name == change.node_id)
        self.changes.append(Changed(now_s, node.name, change.role))
        node.is_draining = True
        placer = self._simulation.placer
        if node.role is Role.DECODE:
            placer.close_group(node.decode[0].group_id)
        else:
            self._close(node, Role.PREFILL)
            self._renew_leaders(now_s)
        return self._simulation.life.fetch_due(now_s)

    def _go_on(self, now_s: float) -> Events:
        """Nodes that are empty now, and nodes that are ready to join."""
        events: Events = NOTHING
        for node in self.nodes:
            if node.is_draining and node.num_requests() == 0:
                if node.role is Role.DECODE:
                    self._close(node, Role.DECODE)
                node.is_draining, node.joins_s = False, now_s + self._switch_s
            if node.joins_s is not None and node.joins_s <= now_s:
                node.joins_s = None
                node.role = Role.DECODE if node.role is Role.PREFILL else Role.PREFILL
                for engine in node.engines(node.role):
                    self._simulation.placer.bring_back(engine)
                self._renew_leaders(now_s)
                events = [*events, *self._simulation.life.fetch_due(now_s)]
        return events

    def _close(self, node: SwitchingNode, role: Role) -> None:
        for engine in node.engines(role):
            self._simulation.placer.lose(engine)

    def _renew_leaders(self, now_s: float) -> None:
        """Groups without engines ask for nothing, or their turns would go to whoever comes next."""
        scopes = [scope for scope in self._simulation.placer.scopes if scope.by_id]
        if self._simulation.spec.scheduler.fetch_interval_s:
            self._simulation.life.use_leaders(scopes, now_s)


class RoleLook(Event):
    """Comes again until the last agent is done."""

    __slots__ = ("controller", "index", "simulation", "step_s")

    def __init__(self, index: int, step_s: float, controller: RoleController, simulation: Simulation) -> None:
        self.time_s, self.index, self.step_s = index * step_s, index, step_s
        self.controller, self.simulation = controller, simulation

    def fire(self) -> Events:
        if self.simulation.observer.num_agents_done >= len(self.simulation.agents):
            return NOTHING
        events = self.controller.look(self.time_s, self.index % LOOKS == 0)
        return [*events, RoleLook(self.index + 1, self.step_s, self.controller, self.simulation)]


def prepare_switching(
    spec: SimSpec,
    cost: ModelCost,
    system: str,
    trajectories: Sequence[Trajectory],
    settings: RoleSwitchSettings,
    switch_s: float,
) -> tuple[Simulation, RoleController]:
    """The spec's nodes, able to change role; it begins with the spec's P and D. Offline workloads only.

    Raises ConfigError for groups beyond a node, for systems that choose engines in turn, and for agents that arrive.
    """
    policy, shape = SYSTEMS[system], spec.cluster
    if policy.prefill_choice is Assignment.ROUND_ROBIN or policy.decode_choice is Assignment.ROUND_ROBIN:
        raise ConfigError(f"[scheduler] systems: {system} chooses engines in turn and has no use for changing roles")
    if spec.workload.aps is not None:
        raise ConfigError(f"[workload] aps: {spec.workload.aps:g}: roles change in simulations of whole jobs only")
    for name in ("prefill_group", "decode_group_engines"):
        if getattr(shape, name) > shape.engines_per_node:
            raise ConfigError(
                f"[cluster] {name}: {getattr(shape, name)} engines are more than a node that changes role"
            )
    num_nodes = shape.prefill_nodes + shape.decode_nodes
    both = replace(spec, cluster=replace(shape, prefill_nodes=num_nodes, decode_nodes=num_nodes))
    simulation = prepare(both, cost, system, trajectories)
    controller = RoleController(simulation, settings, switch_s, shape.prefill_nodes)
    simulation.agenda.add((RoleLook(1, settings.window_s / LOOKS, controller, simulation),))
    return simulation, controller


def _merged(simulation: Simulation) -> list[SwitchingNode]:
    """Prefill node i and decode node i are one: they share everything but engines."""
    cluster, size = simulation.cluster, simulation.spec.cluster.engines_per_node
    nodes = []
    for start in range(0, len(cluster.prefill), size):
        prefill, decode = cluster.prefill[start : start + size], cluster.decode[start : start + size]
        for one, other in zip(prefill, decode, strict=True):
            other.node, other.nic = one.node, one.nic
        prefill[0].node.name = NodeId(f"node{start // size}")
        nodes.append(SwitchingNode(prefill[0].node.name, prefill, decode, Role.PREFILL))
    del cluster.nodes[len(nodes) :]
    return nodes
