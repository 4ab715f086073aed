"""Ports for later are different, free, and none that an outgoing connection may take meanwhile."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dualpath.cluster import free_ports as module
from dualpath.cluster.free_ports import free_ports


def test_they_are_free_and_below_those_of_connections(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "range").write_text("20100\t60999\n")
    monkeypatch.setattr(module, "_RANGE_OF_CONNECTIONS", tmp_path / "range")
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_ports(1)[0]))
        found = set(free_ports(50))
        assert other.getsockname()[1] not in found
    assert len(found) == 50
    assert all(20_000 <= port < 20_100 for port in found)


@pytest.mark.parametrize("text", ["1024 65535", "20001 65535"])
def test_where_connections_take_all_the_kernel_chooses(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "range").write_text(text)
    monkeypatch.setattr(module, "_RANGE_OF_CONNECTIONS", tmp_path / "range")
    assert len(set(free_ports(4))) == 4
