"""The systems that are compared, one row each: the paper's baseline, its ablation, the paper's own, ours, the oracle.

A system is a choice of policies, never a fork of the code: the live cluster and a simulator read the same table. From
row to row one thing changes, which is what an ablation needs (paper section 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from dualpath.core.errors import ConfigError


class Assignment(str, Enum):
    """How requests are spread over the engines of a role."""

    LOAD = "load"  # by reading queue, tokens and requests (paper section 6)
    ROUND_ROBIN = "round_robin"  # each in turn, whatever its load


@dataclass(frozen=True, slots=True)
class SystemPolicy:
    """What makes a system that system; everything else is common to all."""

    name: str
    path: str  # a name in PATH_POLICIES
    prefill_choice: Assignment = Assignment.LOAD
    decode_choice: Assignment = Assignment.LOAD
    streams_layers: bool = True  # False: prefill holds all layers of whole requests, and loads before it computes
    uses_quota: bool = True  # forward batches are cut by their predicted attention time (paper section 6)
    skips_io: bool = False  # no KV byte moves anywhere: answers are wrong by intention, never stored


def _by_turns(name: str, path: str, streams_layers: bool) -> SystemPolicy:
    """Without the paper's scheduling, that between engines and that inside one."""
    turns = Assignment.ROUND_ROBIN
    return SystemPolicy(name, path, turns, turns, streams_layers, uses_quota=False)


_ALL = (
    _by_turns("basic", "prefill", False),  # prefill-side reads, engines in turn, whole requests in prefill memory
    _by_turns("layerwise", "prefill", True),  # basic, with layers streamed through prefill memory
    _by_turns("round_robin", "round_robin", True),  # layerwise, with both read paths in turn
    SystemPolicy("shorter", "shorter"),  # the paper: everything scheduled by load and queues
    SystemPolicy("split", "split"),  # the paper's scheduling, each request's read shared by both sides
    SystemPolicy("oracle", "split", skips_io=True),  # split without moving any KV: a bound on speed, answers invalid
)
SYSTEMS: Mapping[str, SystemPolicy] = {system.name: system for system in _ALL}


def system_policy(name: str | None, path: str) -> SystemPolicy:
    """The system of that name; None: full scheduling with the path policy ``path``. Raises ConfigError."""
    if name is None:
        return SystemPolicy(path, path)
    if name not in SYSTEMS:
        raise ConfigError(f"no system {name!r}; choose one of {', '.join(SYSTEMS)}")
    return SYSTEMS[name]
