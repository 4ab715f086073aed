"""A cluster that could be bought, what it costs, and all of them from cheap to expensive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dualpath.core.errors import ConfigError
from dualpath.sim.catalogue.find import find_model
from dualpath.sim.model_choice import resolve
from dualpath.sim.plan.question import Prices, Space
from dualpath.sim.spec import SimSpec

MAX_GROUP_NODES = 64


@dataclass(frozen=True, slots=True)
class Candidate:
    """Nodes of one kind, and the system that runs on them."""

    system: str
    prefill_nodes: int
    decode_nodes: int
    engines_per_node: int
    group_engines: int
    snics: int
    snic_gbps: float
    staging_bytes: int

    @property
    def num_nodes(self) -> int:
        return self.prefill_nodes + self.decode_nodes

    @property
    def num_gpus(self) -> int:
        return self.num_nodes * self.engines_per_node

    @property
    def group_nodes(self) -> int:
        """P and D are multiples of it."""
        return max(1, self.group_engines // self.engines_per_node)

    def price_per_hour(self, prices: Prices) -> float:
        return (
            self.num_gpus * prices.gpu_hour
            + self.num_nodes * self.snics * prices.snic_hour
            + self.num_nodes * self.staging_bytes / 1e9 * prices.staging_gb_hour
        )

    def cost_key(self, prices: Prices) -> tuple[float, int, float, int]:
        """Cheaper sorts first; what prices do not tell apart: GPUs, storage bandwidth, staging memory."""
        bandwidth = self.num_nodes * self.snics * self.snic_gbps
        return (self.price_per_hour(prices), self.num_gpus, bandwidth, self.num_nodes * self.staging_bytes)

    def spec(self, base: SimSpec) -> SimSpec:
        """The base on this cluster. Raises ConfigError for groups that do not divide the nodes."""
        cluster = replace(
            base.cluster,
            prefill_nodes=self.prefill_nodes,
            decode_nodes=self.decode_nodes,
            engines_per_node=self.engines_per_node,
            prefill_group_engines=self.group_engines,
            decode_group_engines=self.group_engines,
            storage_nics_per_node=self.snics,
            storage_nic_bytes_per_s=self.snic_gbps * 1e9 / 8,
            staging_bytes=self.staging_bytes,
        )
        return replace(base, cluster=cluster, scheduler=replace(base.scheduler, systems=self.system))

    def __str__(self) -> str:
        nics = f"{self.snics} x {self.snic_gbps:g} Gb/s"
        return f"{self.system} {self.prefill_nodes}P{self.decode_nodes}D, {nics}, {self.staging_bytes / 1e9:g} GB"


def groups(base: SimSpec, space: Space, longest_tokens: int) -> list[int]:
    """Group sizes to try: those given, or the fewest whole nodes that hold the model and the longest request's KV, and
    twice as many: larger groups read fewer weights in a decode step.

    Raises ConfigError where none does: the model does not fit.
    """
    if space.group_engines:
        return [size for size in space.group_engines if _fits(base, space, size, longest_tokens)]
    if base.model.name is not None:
        find_model(base.model.name)  # one that is unknown is not one that does not fit
    why = ConfigError("impossible cluster")
    group_nodes = 1
    while group_nodes <= min(space.max_nodes // 2, MAX_GROUP_NODES):
        try:
            _fits(base, space, group_nodes * space.engines_per_node, longest_tokens)
            found = [group_nodes * space.engines_per_node]
            return [*found, 2 * found[0]] if 4 * group_nodes <= space.max_nodes else found
        except ConfigError as error:
            why = error
        group_nodes *= 2
    raise ConfigError(f"impossible cluster: no group of up to {space.max_nodes // 2} nodes holds the model: {why}")


def _fits(base: SimSpec, space: Space, size: int, longest_tokens: int) -> bool:
    """Raises ConfigError saying why not."""
    nodes = max(1, size // space.engines_per_node)
    one = Candidate(space.systems[0], nodes, nodes, space.engines_per_node, size, 1, 400.0, 1)
    spec, cost = resolve(one.spec(base))
    needed = longest_tokens * cost.kv_bytes_per_token
    have = spec.cluster.decode_kv_bytes or 0
    if have < needed:
        raise ConfigError(
            f"[cluster] decode_kv_bytes: impossible cluster: the longest request has {longest_tokens} tokens and needs"
            f" {needed} bytes, not {have}"
        )
    return True


@dataclass(frozen=True, slots=True)
class Ladder:
    """Clusters that differ in their number of nodes alone."""

    system: str
    engines_per_node: int
    group_engines: int
    snics: int
    snic_gbps: float
    staging_bytes: int
    max_nodes: int

    def rung(self, num_nodes: int) -> list[Candidate]:
        """Every division of so many nodes into prefill and decode."""
        step = max(1, self.group_engines // self.engines_per_node)
        return [
            Candidate(
                self.system,
                prefill,
                num_nodes - prefill,
                self.engines_per_node,
                self.group_engines,
                self.snics,
                self.snic_gbps,
                self.staging_bytes,
            )
            for prefill in range(step, num_nodes - step + 1, step)
        ]

    def sizes(self) -> range:
        step = max(1, self.group_engines // self.engines_per_node)
        return range(2 * step, self.max_nodes + 1, step)


def ladders(space: Space, system: str, sizes: list[int]) -> Iterator[Ladder]:
    for group_engines in sizes:
        for snics in space.snics:
            for gbps in space.snic_gbps:
                for staging_bytes in space.staging_bytes:
                    yield Ladder(
                        system, space.engines_per_node, group_engines, snics, gbps, staging_bytes, space.max_nodes
                    )
