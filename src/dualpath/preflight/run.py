"""All checks of one host, quick ones before a start, and what must be equal on all hosts."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dualpath import __version__
from dualpath.config import NodeConfig, ServeConfig, bytes_per_s
from dualpath.core.errors import ConfigError, DualPathError
from dualpath.preflight.host import (
    available_bytes,
    check_clock,
    check_files,
    check_locking,
    check_memory,
    check_pages,
    check_threads,
)
from dualpath.preflight.line import FAIL, OK, Line, fail, ok, warn
from dualpath.preflight.model_files import check_files as check_model_files
from dualpath.preflight.network import check_nics
from dualpath.preflight.ports import check_ports, gateway_is_elsewhere
from dualpath.preflight.storage import check_rate, check_store
from dualpath.preflight.ucx import check_ucx
from dualpath.preflight.vllm import check_vllm

_CLOCKS_S = 1.0  # two hosts' clocks may differ by it


@dataclass(frozen=True, slots=True)
class HostReport:
    """What one host found for the nodes that are to run on it. Goes between processes."""

    host: str
    lines: tuple[Line, ...]
    kinds: dict[str, str]  # of a node ("" for one process): namespace, as text
    needed_bytes: int
    free_bytes: int | None
    unix_s: float
    version: str = __version__


def quick(config: ServeConfig, say: Callable[[str], None]) -> None:
    """Before a start, in milliseconds: what is doubtful is said, what will fail is raised as a ConfigError."""
    nodes = config.nodes if config.ray.address is None else ()  # elsewhere other devices count
    lines = [*check_model_files(config.model.dir), *check_store(config), *check_threads(config, nodes)]
    for node in nodes:
        found = check_nics(node)
        # The name of a storage NIC is for people: nothing is bound to it.
        lines += [
            replace(_named(line, node.name), state="warn" if line.state == FAIL else line.state) for line in found
        ]
    for line in lines:
        if line.state == FAIL:
            raise ConfigError(f"{line.check}: {line.text}; {line.remedy}")
        if line.state != OK and line.check != "store":
            say(f"warning: {str(line).removeprefix('warn ')}")


def check_host(config: ServeConfig, nodes: Sequence[NodeConfig] = ()) -> HostReport:
    """Everything, for ``nodes`` of ``config`` that are to run here; none: all engines in one process. Seconds."""
    lines = [*check_model_files(config.model.dir), *check_store(config), *check_vllm(config, nodes)]
    is_readable = all(line.state != FAIL for line in lines)
    kinds: dict[str, str] = {}
    needed_bytes = 0
    block_bytes: int | None = None
    for node in nodes or (None,):
        name = "" if node is None else node.name
        found, kind_text, num_bytes, node_block_bytes = _check_node(config, node, is_readable)
        lines += [_named(line, name) for line in found]
        needed_bytes += num_bytes
        block_bytes = node_block_bytes or block_bytes  # a gateway has none
        if kind_text is not None:
            kinds[name] = kind_text
    known = [config.storage_nic_bytes_per_s(node) for node in nodes] or [bytes_per_s(config.cluster.storage_nic_mbps)]
    rates = [rate for rate in known if rate is not None]
    if is_readable:
        lines += check_rate(config, max(rates, default=None), block_bytes)
    lines += [*check_clock(), *check_files(config.gateway.max_connections), *check_threads(config, nodes)]
    roles = {node.role for node in nodes}
    has_gateway = "gateway" in roles or (not gateway_is_elsewhere(config) and config.ray.address is None)
    lines += check_ports(config, has_gateway=has_gateway, has_prefill=not nodes or "prefill" in roles)
    host = socket.gethostname()
    return HostReport(host, tuple(lines), kinds, needed_bytes, available_bytes(), time.time())


def conclude(reports: Sequence[HostReport], asked_unix_s: float) -> list[Line]:
    """All hosts' lines, then those on what hosts share or must agree on. ``asked_unix_s``: when they were asked."""
    lines = [line for report in reports for line in report.lines]
    if len({report.host for report in reports}) > 1:
        lines = [replace(line, where=line.where or r.host) for r in reports for line in r.lines]
    for host in dict.fromkeys(report.host for report in reports):
        here = [report for report in reports if report.host == host]
        if here[0].free_bytes is not None:
            needed = sum(report.needed_bytes for report in here)
            lines += [_named(line, host) for line in check_memory(needed, here[0].free_bytes)]
    return lines + list(_agreement(reports, asked_unix_s))


def _agreement(reports: Sequence[HostReport], asked_unix_s: float) -> Iterator[Line]:
    kinds = {name: kind for report in reports for name, kind in report.kinds.items()}
    num_nodes = len(kinds)
    if len(set(kinds.values())) > 1:
        first, *others = kinds
        other = next(name for name in others if kinds[name] != kinds[first])
        yield fail(
            "namespace",
            f"{first} has {kinds[first]}, {other} has {kinds[other]}",
            "one model, dtype, block_tokens and kind of device for all",
        )
    elif num_nodes > 1:
        yield ok("namespace", f"the same on {num_nodes} nodes")
    versions = {report.host: report.version for report in reports}
    if len(set(versions.values())) > 1:
        yield fail("version", ", ".join(f"{h} has {v}" for h, v in versions.items()), "install the same on every host")
    now_s = time.time()
    for report in reports:
        off_s = max(asked_unix_s - report.unix_s, report.unix_s - now_s, 0.0)
        if off_s > _CLOCKS_S:
            yield warn(
                "clock", f"{report.host} differs from this host by {off_s:.1f} s or more", "chrony on every host"
            )


def _check_node(
    config: ServeConfig, node: NodeConfig | None, is_readable: bool
) -> tuple[list[Line], str | None, int, int | None]:
    """Lines, namespace, bytes of the host's memory, bytes of a Full Block."""
    lines: list[Line] = [] if node is None else list(check_nics(node))
    if node is not None and node.role == "gateway":
        return lines, None, 0, None
    if not is_readable:
        return lines, None, 0, None
    if config.cluster.engine == "vllm":
        return _check_server(config, node, lines)
    from dualpath.preflight.model_kind import check_device, describe, model_kind, resolve
    from dualpath.preflight.need import host_bytes, num_engines, staging_bytes

    device = (node.device if node else None) or config.model.device
    lines += check_device(device, num_engines(config, node))
    try:
        kind = model_kind(config, resolve(device))
        needed, staged = host_bytes(config, node, kind), staging_bytes(config, node, kind)
    except DualPathError as error:
        lines.append(fail("geometry", str(error), "the setting that it names"))
        return lines, None, 0, None
    lines.append(describe(kind))
    lines += _check_transfers(node, staged)
    return lines, str(kind.namespace), needed, kind.namespace.geometry.full_block_bytes


def _check_server(
    config: ServeConfig, node: NodeConfig | None, lines: list[Line]
) -> tuple[list[Line], str | None, int, int | None]:
    """As ``_check_node``. What the model needs, and what must be the same on all nodes, vLLM knows when it runs."""
    from dualpath.cluster.vllm.plan import sizes_of
    from dualpath.preflight.need import slots_bytes

    try:
        geometry, sizes = sizes_of(config)
    except ConfigError:  # ``check_vllm`` says so
        return lines, None, 0, None
    staged = slots_bytes(config, node, geometry, sizes)
    return [*lines, *_check_transfers(node, staged)], None, staged, geometry.full_block_bytes


def _check_transfers(node: NodeConfig | None, staged_bytes: int) -> Iterator[Line]:
    yield from check_locking(node, staged_bytes)
    yield from check_pages(node)
    environment = dict(os.environ) if node is None else node.environment
    yield from check_ucx({name: value for name, value in environment.items() if name.startswith("UCX_")})


def _named(line: Line, name: str) -> Line:
    return replace(line, where=line.where or name)
