"""The checks of ``dualpath.preflight`` on the hosts of a Ray cluster: a task on each node's resource."""

from __future__ import annotations

import socket
import time

from dualpath.config import NodeConfig, ServeConfig
from dualpath.core.errors import DualPathError
from dualpath.preflight.host import available_bytes
from dualpath.preflight.ports import check_ports, gateway_is_elsewhere
from dualpath.preflight.run import HostReport, check_host
from dualpath.ray.actors import gpus_of, node_environment
from dualpath.ray.runtime import check_resources, connected

_LIMIT_S = 300.0


def check_cluster(config: ServeConfig) -> list[HostReport]:
    """One report for each node, and this host's where the gateway will run on it.

    Takes the resources of nodes for the time being: before a start, not beside one.
    """
    assert config.ray.address is not None
    with connected(config.ray.address, "dualpath-check") as ray:
        check_resources(ray, config)
        asked = [_ask(ray, config, node) for node in config.nodes]
        _, late = ray.wait(asked, num_returns=len(asked), timeout=_LIMIT_S)
        if late:
            names = ", ".join(node.name for node, ref in zip(config.nodes, asked, strict=True) if ref in late)
            raise DualPathError(f"no answer from {names} within {_LIMIT_S:g} s")
        reports: list[HostReport] = ray.get(asked)
        return reports if gateway_is_elsewhere(config) else [*reports, _gateway_here(config)]


def _gateway_here(config: ServeConfig) -> HostReport:
    lines = tuple(check_ports(config, has_gateway=True, has_prefill=False))
    return HostReport(socket.gethostname(), lines, {}, 0, available_bytes(), time.time())


def _ask(ray: object, config: ServeConfig, node: NodeConfig) -> object:
    options = {"resources": {node.ray_resource: 1}, "num_cpus": 0, "num_gpus": gpus_of(config, node)}
    environment = {"env_vars": node_environment(config, node)}
    task = ray.remote(check_host).options(runtime_env=environment, max_retries=0, **options)  # type: ignore[attr-defined]
    return task.remote(config, (node,))
