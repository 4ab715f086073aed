"""What the host gives a node's process: memory, memory that may be locked for RDMA, large pages, cores, a clock."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

from dualpath.config import NodeConfig, ServeConfig
from dualpath.preflight.line import Line, fail, ok, warn

_GB = 1e9
_NOT_SYNCHRONISED = 5  # TIME_ERROR
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Of the host's memory, without what can be given back; None where Linux does not say."""
    try:
        lines = [line.split() for line in meminfo.read_text().splitlines()]
    except OSError:
        return None
    return next((int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"), None)


def check_memory(needed_bytes: int, free_bytes: int) -> Iterator[Line]:
    """``needed_bytes``: of staging buffers, and of all else that a host's engines keep in its memory."""
    text = f"{needed_bytes / _GB:,.1f} GB needed, {free_bytes / _GB:,.1f} GB available"
    if needed_bytes > free_bytes:
        remedy = "[memory] prefill_staging_bytes, decode_staging_bytes, decode_kv_tokens, or fewer engines"
        yield fail("memory", text, remedy)
    elif needed_bytes > 0.9 * free_bytes:
        yield warn("memory", text, "[memory] prefill_staging_bytes, decode_staging_bytes, or fewer engines")
    else:
        yield ok("memory", text)


def check_locking(node: NodeConfig | None, staging_bytes: int, limit_bytes: int | None = None) -> Iterator[Line]:
    """RDMA pins what it registers. ``limit_bytes``: for tests; None: this process's."""
    if node is None or not node.rdma_devices:
        return  # TCP and shared memory pin nothing
    if limit_bytes is None:
        limit_bytes = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit_bytes == resource.RLIM_INFINITY:
        yield ok("memlock", "unlimited")
    elif limit_bytes < staging_bytes:
        text = f"{limit_bytes / _GB:,.3f} GB may be locked, staging buffers have {staging_bytes / _GB:,.1f} GB"
        yield fail("memlock", text, "ulimit -l unlimited (LimitMEMLOCK=infinity; in a pod IPC_LOCK)")
    else:
        yield ok("memlock", f"{limit_bytes / _GB:,.1f} GB for {staging_bytes / _GB:,.1f} GB of staging buffers")


def check_threads(config: ServeConfig, nodes: Sequence[NodeConfig], num_cores: int | None = None) -> Iterator[Line]:
    """Models of engines that compute on CPUs: of ``nodes``, else all in one process. ``num_cores``: for tests."""
    threads = config.cluster.threads_per_engine
    if threads is None:
        return  # the default shares what there is
    cores = num_cores or os.cpu_count() or 1
    on_cpu = [node for node in nodes if node.role != "gateway" and not _is_cuda(node.device or config.model.device)]
    num_engines = sum(node.engines for node in on_cpu)
    if not nodes and not _is_cuda(config.model.device):
        num_engines = (config.cluster.prefill + config.cluster.decode) * config.cluster.engines_per_node
    if num_engines * threads > cores:
        text = f"{num_engines} engines of {threads} threads each on {cores} cores: each slows the others down"
        yield warn("threads", text, f"threads_per_engine = {max(1, cores // num_engines)}")


def _is_cuda(device: str) -> bool:
    return device.startswith("cuda")


def check_pages(node: NodeConfig | None, thp: Path = _THP) -> Iterator[Line]:
    """Registering gigabytes in pages of 4 KiB fills the NIC's translation tables."""
    if node is None or not node.rdma_devices:
        return
    try:
        chosen = thp.read_text().split("[")[1].split("]")[0]
    except (OSError, IndexError):
        return
    if chosen == "never":
        remedy = f"echo madvise > {thp}, and THP_MEM_ALLOC_ENABLE=1 in the node's env"
        yield warn("large pages", "transparent large pages are off: RDMA registers 4 KiB at a time", remedy)
    else:
        yield ok("large pages", f"transparent large pages: {chosen}")


def check_clock() -> Iterator[Line]:
    """Files' ages decide what is deleted first, and traces of several hosts are laid beside each other."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # all zero: asks, changes nothing
    except (OSError, AttributeError):
        return
    if state == _NOT_SYNCHRONISED:
        yield warn("clock", "not synchronised, says the kernel", "chrony or systemd-timesyncd on every host")
    elif state >= 0:
        yield ok("clock", "synchronised")


def check_files(max_connections: int | None) -> Iterator[Line]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if max_connections is not None and limit != resource.RLIM_INFINITY and limit < max_connections + 256:
        text = f"{limit} files may be open, max_connections is {max_connections}"
        yield fail("open files", text, f"ulimit -n {max_connections + 1024}")
    else:
        yield ok("open files", "unlimited" if limit == resource.RLIM_INFINITY else f"{limit}")
