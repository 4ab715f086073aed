"""Ray itself: is it there, connect to it, and the names under which our actors live in it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from dualpath.cluster.signals import held_back
from dualpath.config import NodeConfig, RayConfig, ServeConfig
from dualpath.core.errors import ConfigError, DualPathError

Handle = Any  # of an actor: Ray's is untyped

GATEWAY, SCHEDULER = "gateway", "scheduler"
_KNOCK_S = 5.0
_LOOK_S = 0.5
_FREE_S = 10.0  # a system that has just ended gives its resources back within
TOKEN_HINT = "where Ray asks for a token: RAY_AUTH_MODE=token, and the head's ~/.ray/auth_token here too"
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
    _knock(address)
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
        raise DualPathError(f"cannot reach Ray at {address}: {error}; {TOKEN_HINT}") from None
    return ray


@contextmanager
def connected(address: str, namespace: str) -> Iterator[ModuleType]:
    """``connect``, until the inside ends. Signals do not break off the parting: Ray ends a process that is half its
    driver when the raylet goes, whatever that process has left to clean up."""
    try:
        yield connect(address, namespace)
    finally:
        if (ray := sys.modules.get("ray")) is not None:
            with held_back():
                ray.shutdown()


def _knock(address: str) -> None:
    """Raises DualPathError where nobody listens: Ray would look for a minute, and a second time for good."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto": Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()
    except OSError as error:
        raise DualPathError(f"cannot reach Ray at {address}: {error.strerror or error}") from None


def node_actor_name(name: str) -> str:
    return f"node-{name}"


def gateway_names(count: int) -> tuple[str, ...]:
    """Of their actors; a single one is the scheduler's process, too."""
    return (GATEWAY,) if count == 1 else tuple(f"{GATEWAY}{number}" for number in range(count))


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


def wanted_units(config: ServeConfig) -> Counter[str]:
    """Of each Ray resource: one for a node, and one for each gateway where a node's entry is about them."""
    units: Counter[str] = Counter()
    for node in config.nodes:
        units[node.ray_resource] += config.ray.gateways if node.role == GATEWAY else 1
    return units


def check_resources(ray: ModuleType, config: ServeConfig, say: Callable[[str], None] = lambda line: None) -> None:
    """Raises ConfigError where nodes' resources are not to be had: their actors would wait for good.

    Hosts may take ``[ray] join_s`` to join; ``say`` hears for which it waits.
    """
    join_until_s = time.monotonic() + config.ray.join_s
    for name, wanted in wanted_units(config).items():
        is_said = False
        while (has := dict(ray.cluster_resources()).get(name, 0.0)) < wanted:
            lack = f"{_of(name, config.nodes)}: the Ray cluster offers {has:g} of resource {name}, {wanted} needed"
            if time.monotonic() > join_until_s:
                raise ConfigError(f"[[nodes]] {lack}; start a host's Ray with --resources '{{\"{name}\": 1}}'")
            if not is_said:
                say(f"waiting for hosts to join: {lack}")
            is_said = True
            time.sleep(_LOOK_S)
        until_s = time.monotonic() + _FREE_S
        while (free := dict(ray.available_resources()).get(name, 0.0)) < wanted:
            if time.monotonic() > until_s:
                raise ConfigError(
                    f"[[nodes]] {_of(name, config.nodes)}: {has - free:g} of {has:g} of resource {name} are taken, "
                    f"{wanted} needed: another system runs on this Ray cluster"
                )
            time.sleep(_LOOK_S)


def _of(resource: str, nodes: tuple[NodeConfig, ...]) -> str:
    return ", ".join(node.name for node in nodes if node.ray_resource == resource)
