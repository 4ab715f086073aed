"""Where processes listen: TCP and bound UDP sockets of their own, by the kernel's tables. Linux only."""

from __future__ import annotations

import ipaddress
import os
import re
import struct
from contextlib import suppress
from pathlib import Path

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_LISTENING = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}  # for UDP: not connected


def listening(pid: int) -> set[tuple[Address, int]]:
    """Of a process and all its descendants."""
    return {place for process in [pid, *_descendants(pid)] for place in _of_one(process)}


def child_at(port: int) -> int:
    """Our child process that listens on this port."""
    return next(pid for pid in _descendants(os.getpid()) if any(port == own for _, own in _of_one(pid)))


def open_to_others(pid: int) -> set[tuple[Address, int]]:
    return {(address, port) for address, port in listening(pid) if not address.is_loopback}


def _of_one(pid: int) -> set[tuple[Address, int]]:
    places = set()
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        inodes = _socket_inodes(pid)
        for table, state in _LISTENING.items():
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == state and fields[9] in inodes:
                    host, port = fields[1].split(":")
                    places.add((_address(host), int(port, 16)))
    return places


def _socket_inodes(pid: int) -> set[str]:
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):  # closed meanwhile
            if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{name}")):
                inodes.add(found[1])
    return inodes


def _address(text: str) -> Address:
    """The kernel writes addresses as 32-bit words of this machine's byte order."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    address = ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _descendants(pid: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            children += [int(child) for child in (task / "children").read_text().split()]
    return [found for child in children for found in (child, *_descendants(child))]
