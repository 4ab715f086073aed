"""How nodes of one machine, each a process of its own, share its cores."""

from __future__ import annotations

import os
from dataclasses import replace

from dualpath.config import ServeConfig


def share_cores(config: ServeConfig) -> ServeConfig:
    """Every engine gets its part of all cores, unless the configuration says how many threads it takes."""
    if config.cluster.threads_per_engine is not None:
        return config
    num_engines = sum(node.engines for node in config.nodes if node.role != "gateway")
    threads = max(1, (os.cpu_count() or 1) // num_engines)
    return replace(config, cluster=replace(config.cluster, threads_per_engine=threads))
