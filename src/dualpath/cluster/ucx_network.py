"""Which network devices UCX may listen on: it does not authenticate peers, so no more than are needed.

Whoever reaches a port that UCX listens on, or a NIC that it uses, can read and write the memory of that process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

_LOOPBACK = "lo"
_WITHIN_A_HOST = {"tcp", "self", "all", "cma", "knem", "mm", "posix", "shm", "sm", "sysv", "xpmem"} | {
    "cuda",
    "cuda_copy",
    "cuda_ipc",
    "gdr_copy",
}
_RDMA_DEVICES = Path("/sys/class/infiniband")


def within_process(environment: Mapping[str, str], *, on_cuda: bool) -> dict[str, str]:
    """Parameters of NIXL's UCX backend for engines that all live in this process. The user's own UCX_* are stronger.

    On CPUs shared memory alone, and no port: then UCX cannot tell that a peer has died, but nobody here can. CUDA
    devices may need more than that, so loopback stays.
    """
    transports = environment.get("UCX_TLS")
    if "UCX_NET_DEVICES" in environment or (transports is not None and not _stays_within_host(transports)):
        return {}
    if transports is not None or on_cuda:
        return {"engine_config": f"NET_DEVICES={_LOOPBACK}"}
    return {"engine_config": f"NET_DEVICES={_LOOPBACK},TLS=^tcp", "ucx_error_handling_mode": "none"}


def within_host(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables of processes that are all on this host, unless ``environment``, what they have, says more."""
    transports = environment.get("UCX_TLS")
    if "UCX_NET_DEVICES" in environment or (transports is not None and not _stays_within_host(transports)):
        return {}
    return {"UCX_NET_DEVICES": _LOOPBACK}


def open_devices_warning(environment: Mapping[str, str]) -> str | None:
    """One line for an operator who has not said which network is for KV."""
    if environment.get("UCX_NET_DEVICES", "all") != "all":
        return None
    devices = [name for _, name in socket.if_nameindex() if _is_up(name)]
    if _RDMA_DEVICES.is_dir():
        devices += sorted(os.listdir(_RDMA_DEVICES))
    return (
        f"warning: UCX uses every network device ({', '.join(devices)}), and whoever reaches one of them can read and "
        "write KV memory: each must be of an isolated network; compute_nics or UCX_NET_DEVICES says which are for KV"
    )


def _stays_within_host(transports: str) -> bool:
    """Does a UCX_TLS do without network devices, TCP's loopback excepted?"""
    return transports.startswith("^") or set(transports.split(",")) <= _WITHIN_A_HOST


def _is_up(name: str) -> bool:
    try:
        return Path(f"/sys/class/net/{name}/operstate").read_text().strip() != "down"
    except OSError:
        return False
