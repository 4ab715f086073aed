"""What a simulated cluster uses between two moments, by resource: counters read twice, memory looked at often."""

from __future__ import annotations

from collections.abc import Sequence

from dualpath.sim.engines.cluster import Cluster
from dualpath.sim.observer import Observer
from dualpath.sim.requests.agenda import NOTHING, Event, Events

NUM_LOOKS = 64  # at memory, in a window of known length


class Gauges:
    """Means over all engines or nodes of a role, from ``begin`` to ``end``. Above 1: more than a link carries."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._begin_s = 0.0
        self._busy_s = self._read()
        self._memory: dict[str, float] = {}
        self._looks = 0

    def begin(self, now_s: float) -> None:
        """Forget everything before."""
        self._begin_s, self._busy_s = now_s, self._read()
        self._memory, self._looks = {}, 0

    def look(self) -> None:
        """At how full memory is now."""
        cluster, self._looks = self._cluster, self._looks + 1
        for role in ("prefill", "decode"):
            nodes = [node for node in cluster.nodes if node.name.startswith(role)]
            filled = [node.staging.used_tokens / node.staging.capacity_tokens for node in nodes]
            self._add(f"{role} staging memory", filled)
        self._add("decode HBM", [one.kv.used_tokens / one.kv.capacity_tokens for one in cluster.decode])
        self._add("prefill HBM", [one.kv.used_tokens / one.kv.capacity_tokens for one in cluster.prefill])

    def end(self, now_s: float) -> dict[str, float]:
        """Utilisation of every resource since ``begin``; names as in ``plan.bounds``."""
        elapsed_s = now_s - self._begin_s
        if elapsed_s <= 0:
            return {}
        used = {name: (busy_s - self._busy_s[name]) / elapsed_s for name, busy_s in self._read().items()}
        return used | {name: total / self._looks for name, total in self._memory.items()}

    def _add(self, name: str, filled: Sequence[float]) -> None:
        self._memory[name] = self._memory.get(name, 0.0) + sum(filled) / len(filled)

    def _read(self) -> dict[str, float]:
        """Busy seconds so far."""
        cluster = self._cluster
        found: dict[str, float] = {}
        for role, engines in (("prefill", cluster.prefill), ("decode", cluster.decode)):
            nodes = [node for node in cluster.nodes if node.name.startswith(role)]
            found[f"{role} storage NIC, read"] = _mean([node.snic.busy_s for node in nodes])
            found[f"{role} compute NIC, out"] = _mean([one.nic.out.busy_s for one in engines])
            found[f"{role} compute NIC, in"] = _mean([one.nic.into.busy_s for one in engines])
            found[f"{role} DRAM"] = _mean([node.dram.busy_s for node in nodes])
        decode_nodes = [node for node in cluster.nodes if node.name.startswith("decode")]
        found["decode storage NIC, write"] = _mean([node.store_writes.busy_s for node in decode_nodes])
        return found


class Look(Event):
    """Looks at memory every ``step_s`` until ``until_s``, or until the last agent is done."""

    __slots__ = ("gauges", "num_agents", "observer", "step_s", "until_s")

    def __init__(
        self, time_s: float, gauges: Gauges, step_s: float, until_s: float, observer: Observer, num_agents: int
    ) -> None:
        self.time_s, self.gauges, self.step_s, self.until_s = time_s, gauges, step_s, until_s
        self.observer, self.num_agents = observer, num_agents

    def fire(self) -> Events:
        self.gauges.look()
        next_s = self.time_s + self.step_s
        if next_s > self.until_s or self.observer.num_agents_done >= self.num_agents:
            return NOTHING
        return (Look(next_s, self.gauges, self.step_s, self.until_s, self.observer, self.num_agents),)


class Begin(Event):
    """The measurement begins."""

    __slots__ = ("gauges",)

    def __init__(self, time_s: float, gauges: Gauges) -> None:
        self.time_s, self.gauges = time_s, gauges

    def fire(self) -> Events:
        self.gauges.begin(self.time_s)
        return NOTHING


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
