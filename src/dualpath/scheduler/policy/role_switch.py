"""When should a node change between prefill and decode? Pure: measured demands in, at most one change out.

The P/D ratio that a cluster was built with suits one workload; agents change theirs. (The paper leaves online
adjustment of the ratio open, arXiv 2602.21548 section 8.1.) Both roles' demand is measured over a window in the same
unit, *nodes*: how many would serve it comfortably, queues included. A role's *pressure* is its demand over its nodes;
the larger of the two is what users feel, and a change is worth while if it makes that smaller by a margin.

No flapping: let a node go from g (demand G, n_g nodes) to t (demand T, n_t nodes). That needs
G / (n_g - 1) <= (1 - margin) * T / n_t. To go back at once, with the same demands, would need
T / n_t <= (1 - margin) * G / (n_g - 1): both cannot hold. Between changes the larger pressure falls by at least the
margin, so under constant demand the changes end. Against demands that only tremble: a change must be worth while for
several windows on end, and a role that has just changed dwells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dualpath.core.errors import ConfigError
from dualpath.core.ids import NodeId
from dualpath.core.plan import Role


@dataclass(frozen=True, slots=True)
class RoleSwitchSettings:
    """Times in seconds."""

    window_s: float = 5.0  # over which demands are measured
    high_pressure: float = 1.0  # below, nobody waits much: nothing changes
    margin: float = 0.2  # by which the larger pressure must fall, of itself
    patience: int = 2  # windows on end that must say the same
    dwell_s: float = 15.0  # from one change's end to the next one's begin
    min_prefill: int = 1
    min_decode: int = 1

    def __post_init__(self) -> None:
        for name in ("window_s", "high_pressure"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name}: must be a positive number, not {value}")
        if not 0 < self.margin < 1:
            raise ConfigError(f"margin: must be between 0 and 1, not {self.margin}")
        if not (self.dwell_s >= 0 and math.isfinite(self.dwell_s)):
            raise ConfigError(f"dwell_s: must be a finite number of at least 0, not {self.dwell_s}")
        for name in ("patience", "min_prefill", "min_decode"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, not {getattr(self, name)}")

    def least(self, role: Role) -> int:
        """Nodes that the role keeps."""
        return self.min_prefill if role is Role.PREFILL else self.min_decode


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """A node that takes requests in its role, neither draining nor lost."""

    node_id: NodeId
    role: Role
    num_tokens: int  # of its unfinished requests: how long it would drain


@dataclass(frozen=True, slots=True)
class RoleWindow:
    """What was measured over the last window. Demands in nodes: comfortable work now under way and waiting."""

    now_s: float
    prefill_demand: float
    decode_demand: float
    nodes: Sequence[NodeLoad]
    num_changing: int = 0  # nodes that drain or start in their new role

    def demand(self, role: Role) -> float:
        return self.prefill_demand if role is Role.PREFILL else self.decode_demand

    def count(self, role: Role) -> int:
        return sum(1 for node in self.nodes if node.role is role)


@dataclass(frozen=True, slots=True)
class RoleSwitchState:
    """Memory from window to window; the caller keeps it."""

    wanted: Role | None = None  # that the last windows asked to grow
    num_windows: int = 0  # on end
    changed_s: float = -math.inf  # end of the last change, as far as the policy knows


@dataclass(frozen=True, slots=True)
class RoleChange:
    """The node stops taking requests, finishes those it has, and joins ``role``."""

    node_id: NodeId
    role: Role


def decide(
    window: RoleWindow, state: RoleSwitchState, settings: RoleSwitchSettings
) -> tuple[RoleChange | None, RoleSwitchState]:
    """Called once for every window. Never leaves a role fewer nodes than its least, nor moves two nodes at once."""
    if window.num_changing:
        return None, RoleSwitchState(changed_s=window.now_s)  # dwelling begins when the change ends
    wanted = growing_role(window, settings)
    count = state.num_windows + 1 if wanted is state.wanted else 1
    kept = RoleSwitchState(wanted, count if wanted is not None else 0, state.changed_s)
    if wanted is None or count < settings.patience or window.now_s - state.changed_s < settings.dwell_s:
        return None, kept
    giving = [node for node in window.nodes if node.role is not wanted]
    lightest = min(giving, key=lambda node: (node.num_tokens, node.node_id))
    return RoleChange(lightest.node_id, wanted), RoleSwitchState(changed_s=window.now_s)


def growing_role(window: RoleWindow, settings: RoleSwitchSettings) -> Role | None:
    """The role to which one more node is worth while now; None: neither."""
    for role, giver in ((Role.PREFILL, Role.DECODE), (Role.DECODE, Role.PREFILL)):
        count, giving = window.count(role), window.count(giver)
        if count == 0 or giving <= settings.least(giver):
            continue
        pressure = window.demand(role) / count
        left = window.demand(giver) / (giving - 1) if giving > 1 else math.inf
        if pressure > settings.high_pressure and left <= (1 - settings.margin) * pressure:
            return role
    return None
