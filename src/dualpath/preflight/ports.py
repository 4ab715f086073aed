"""Can this host listen where it is to? The gateway's address, and that of a model that runs on several processes."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

from dualpath.config import ServeConfig
from dualpath.preflight.line import Line, fail, ok


def gateway_is_elsewhere(config: ServeConfig) -> bool:
    return config.ray.address is not None and any(node.role == "gateway" for node in config.nodes)


def ports_here(config: ServeConfig) -> Sequence[int]:
    """Those of gateways that are certain to run on this host, where ``up`` is typed."""
    if gateway_is_elsewhere(config):
        return ()
    count = config.ray.gateways if config.ray.address is None else 1
    return range(config.gateway.port, config.gateway.port + count)


def check_ports(config: ServeConfig, *, has_gateway: bool, has_prefill: bool) -> Iterator[Line]:
    """Of a host with the gateway, with prefill nodes, or both."""
    if has_gateway:
        for port in ports_here(config) or (config.gateway.port,):
            yield _listen("gateway port", config.gateway.host, port, "[gateway] host and port")
    listen = config.cluster.tensor_parallel_listen
    if config.cluster.tensor_parallel > 1 and listen is not None and has_prefill:
        host, _, number = listen.rpartition(":")
        yield _listen("model port", host, int(number), "[cluster] tensor_parallel_listen")


def why_not_listen(host: str, port: int) -> str | None:
    """One line, where the address is not this machine's, or taken."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return f"cannot listen on {host}:{port}: {error.strerror or error}"
    return None


def _listen(check: str, host: str, port: int, remedy: str) -> Line:
    reason = why_not_listen(host, port)
    return ok(check, f"{host}:{port} is free") if reason is None else fail(check, reason, remedy)
