"""vLLM servers as the engines of a rollout: one on each engine host, on its links, and what that takes of a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dualpath.cluster.setup import Progress
from dualpath.cluster.vllm.plan import Host, ServerPlace
from dualpath.cluster.vllm.servers import StartedServers
from dualpath.config import ServeConfig
from dualpath.core.errors import ConfigError
from dualpath.core.plan import Role
from dualpath.testbed.lifecycle import Testbed
from dualpath.testbed.spec import COMPUTE_NETWORK

SERVER_BYTES = 1_700_000_000  # of memory, for a vLLM server on CPUs before it has a model
API_PORT, LINE_PORT = 9000, 9100  # on the compute NIC, in model execution's class
_MEMORY = Path("/proc/meminfo")


def server_places(
    testbed: Testbed, roles: Mapping[str, str], environment: Mapping[str, str]
) -> tuple[ServerPlace, ...]:
    """``roles`` by host. ``environment``: what clients of its storage need."""
    spec = testbed.spec
    places = []
    for host, role in roles.items():
        address = str(spec.address(COMPUTE_NETWORK, host))
        on = Host(tuple(testbed.command_on(host, [])), {**environment, **spec.environment(host)})
        places.append(ServerPlace(host, Role(role), f"http://{address}:{API_PORT}", address, LINE_PORT, on))
    return tuple(places)


def started_servers(
    config: ServeConfig, places: tuple[ServerPlace, ...], progress: Progress, log_dir: Path
) -> StartedServers:
    """The kernel holds their NICs to the rate that the scheduler knows: nothing is emulated. ``log_dir``: of their logs
    where nobody names one.
    """
    vllm = replace(config.vllm, log_dir=config.vllm.log_dir or log_dir)
    config = replace(config, vllm=vllm, cluster=replace(config.cluster, storage_nic_mbps=None))
    return StartedServers(config, places, progress)


def require_room(num_servers: int, available_bytes: int | None) -> None:
    """Raises ConfigError where the machine has no memory for so many servers. None: it does not say what it has."""
    if available_bytes is not None and num_servers * SERVER_BYTES > available_bytes:
        raise ConfigError(
            f"--prefill, --decode: {num_servers} vLLM servers take {num_servers * SERVER_BYTES / 1e9:.1f} GB of memory "
            f"without their models, {available_bytes / 1e9:.1f} GB are free here"
        )


def available_bytes() -> int | None:
    try:
        lines = _MEMORY.read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
