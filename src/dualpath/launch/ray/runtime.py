"""Ray itself: is it there, connect to it, and the names under which our actors live in it."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any

from dualpath.config import NodeConfig, RayConfig
from dualpath.core.errors import ConfigError, DualPathError

Handle = Any  # of an actor: Ray's is untyped

GATEWAY = "gateway"
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")


def require_ray() -> None:
    """Raises ConfigError, one line, where Ray is not installed. Imports nothing: Ray reads its token when imported."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("[[nodes]] need Ray, which is not installed: pip install 'dualpath[ray]'")


def import_ray() -> ModuleType:
    """From here on the environment's RAY_AUTH_* are what they are."""
    require_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a CPU node's process keeps its own settings
    return importlib.import_module("ray")


def connect(address: str, namespace: str) -> ModuleType:
    """Make this process a driver of the Ray cluster at ``address``. Raises DualPathError."""
    ray = import_ray()
    try:
        ray.init(
            address=address,
            namespace=namespace,
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
        )
    except Exception as error:  # of many kinds
        raise DualPathError(f"cannot reach Ray at {address}: {error}") from None
    return ray


def node_actor_name(name: str) -> str:
    return f"node-{name}"


def find_actor(ray: ModuleType, name: str, namespace: str) -> Handle | None:
    try:
        return ray.get_actor(name, namespace=namespace)
    except ValueError:
        return None


def warn_if_open(config: RayConfig) -> str | None:
    """A line about an existing Ray cluster that asks for no token, where it can be reached from elsewhere."""
    address = config.address or ""
    host = address.rpartition(":")[0] or address
    if os.environ.get("RAY_AUTH_MODE") == "token" or host in LOOPBACK:
        return None
    return (
        f"warning: Ray at {address} is used without a token: whoever reaches it can run programs on it. "
        "Start it and this with RAY_AUTH_MODE=token (ray get-auth-token --generate)"
    )


def check_resources(ray: ModuleType, nodes: tuple[NodeConfig, ...]) -> None:
    """Raises ConfigError where a node's resource is on offer nowhere: its actor would wait for good."""
    offered: dict[str, float] = dict(ray.cluster_resources())
    for node in nodes:
        wanted = sum(other.ray_resource == node.ray_resource for other in nodes)
        has = offered.get(node.ray_resource, 0.0)
        if has < wanted:
            raise ConfigError(
                f"[[nodes]] {node.name}: the Ray cluster offers {has:g} of resource {node.ray_resource}, "
                f"{wanted} needed; "
                f"start a host's Ray with --resources '{{\"{node.ray_resource}\": 1}}'"
            )
