"""Whose engines compute: ours in this process, or vLLM servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dualpath.config import ServeConfig

if TYPE_CHECKING:
    from dualpath.cluster.composition import ServingCluster
    from dualpath.cluster.setup import Progress
    from dualpath.cluster.vllm.servers import Servers
    from dualpath.gateway.passthrough.upstream import Upstream


def pick_cluster(
    config: ServeConfig, progress: Progress, servers: Servers | None = None
) -> tuple[ServingCluster, Upstream | None]:
    """And who answers clients in words of their own, if anybody does. ``servers``: vLLM's, where somebody else looks
    after them. Raises ConfigError.
    """
    if config.cluster.engine == "vllm":
        from dualpath.cluster.vllm.cluster import VllmCluster

        cluster = VllmCluster(config, progress, servers=servers)
        return cluster, at_front_door(config, cluster.upstream)
    from dualpath.cluster.embedded import EmbeddedCluster
    from dualpath.models.families import check_model_dir

    check_model_dir(config.model.dir)
    return EmbeddedCluster(config, progress), None


def at_front_door(config: ServeConfig, upstream: Upstream) -> Upstream | None:
    """vLLM servers answer clients themselves, or by tokens."""
    return upstream if config.vllm.front_door == "passthrough" else None
