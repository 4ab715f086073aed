"""Ports for programs that listen later: below those of outgoing connections, one of which could take them meanwhile."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path

_RANGE_OF_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST = 20_000  # Ray's workers take those from 10002 on


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """All different, and free on ``host`` (an IPv4 address, or "" for all of them) now."""
    found: list[int] = []
    with ExitStack() as stack:
        for port in _candidates():
            probe = stack.enter_context(socket.socket())
            try:
                probe.bind((host, port))
            except OSError:
                if not port:
                    raise
                continue
            found.append(probe.getsockname()[1])
            if len(found) == count:
                break
    return found


def _candidates() -> Iterator[int]:
    """In the end 0: what the kernel chooses."""
    below = range(_FIRST, _first_of_connections())
    yield from random.sample(below, min(len(below), 1000))
    yield from repeat(0)


def _first_of_connections() -> int:
    try:
        return int(_RANGE_OF_CONNECTIONS.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return 32_768
