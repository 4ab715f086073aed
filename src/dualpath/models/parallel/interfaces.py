"""On which interface a group's collectives listen: the one of the address where its processes meet, unless told."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

_SIOCGIFADDR = 0x8915


def use_loopback() -> None:
    """Let gloo meet on this host only; it would resolve the host's name else."""
    _use("lo")


def use_interface_of(host: str, port: int) -> None:
    """``port`` 0: ``host`` is an address of our own; else the leader's, and ours is the one that reaches it.

    Where that cannot be found out, torch's own rules hold.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port or None, type=socket.SOCK_DGRAM)[0]
        address = place[0]
        if port:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(place)  # no packet is sent
                address = probe.getsockname()[0]
    except OSError:
        return
    if name := interface_of(str(address)):
        _use(name)


def interface_of(address: str) -> str | None:
    """The interface that has this IPv4 address as its first one."""
    if address.startswith("127."):
        return "lo"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue  # has none
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def _use(name: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")
