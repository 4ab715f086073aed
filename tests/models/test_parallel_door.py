"""Processes of other hosts that run a model together: they come in with the secret, at one address, and nobody else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.listening import listening

from dualpath.cluster.free_ports import free_ports
from dualpath.core import handshake
from dualpath.core.errors import ConfigError
from dualpath.models.parallel.door import Door, WayIn
from dualpath.models.parallel.interfaces import interface_of

SECRET = b"known to both ends"
HOST = "127.0.0.1"


class Echo:
    """Stands for the store: sends back what it hears, and counts who comes."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self.num_connections = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.num_connections += 1
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    @staticmethod
    def _answer(connection: socket.socket) -> None:
        with connection:
            while piece := connection.recv(65536):
                connection.sendall(piece)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def door(echo: Echo) -> Iterator[Door]:
    door = Door(HOST, 0, SECRET, echo.port)
    yield door
    door.close()


def through(port: int, content: bytes) -> bytes:
    """What comes back for ``content``."""
    with socket.create_connection((HOST, port), 10) as connection:
        threading.Thread(target=connection.sendall, args=(content,), daemon=True).start()
        heard = bytearray()
        while len(heard) < len(content) and (piece := connection.recv(65536)):
            heard += piece
    return bytes(heard)


def test_with_the_secret_everything_passes_both_ways(door: Door, echo: Echo) -> None:
    way = WayIn(HOST, door.port, SECRET, 10.0)
    content = os.urandom(3_000_000)
    assert through(way.port, content) == content
    assert through(way.port, b"a second connection") == b"a second connection"
    assert echo.num_connections == 2
    assert door.refusals.count == 0
    way.close()


def test_with_another_secret_there_is_no_way_in(door: Door, echo: Echo) -> None:
    with pytest.raises(ConfigError, match="another secret"):
        WayIn(HOST, door.port, b"not known to both", 10.0)
    assert door.refusals.count == 1
    assert echo.num_connections == 0


@pytest.mark.parametrize("first", [b"", bytes(handshake.RESPONSE_BYTES), b"GET / HTTP/1.1\r\n" * 10], ids=len)
def test_a_stranger_reaches_nothing(door: Door, echo: Echo, first: bytes) -> None:
    with socket.create_connection((HOST, door.port), 10) as stranger:
        stranger.sendall(first)
        stranger.shutdown(socket.SHUT_WR)
        heard = b""
        with suppress(ConnectionResetError):
            while piece := stranger.recv(65536):
                heard += piece
    assert len(heard) <= handshake.CHALLENGE_BYTES
    assert door.refusals.count == 1
    assert echo.num_connections == 0


def test_a_crowd_of_silent_strangers_keeps_nobody_out_for_good(door: Door) -> None:
    crowd = [socket.create_connection((HOST, door.port), 10) for _ in range(100)]
    for stranger in crowd:
        stranger.close()
    way = WayIn(HOST, door.port, SECRET, 10.0)
    assert through(way.port, b"still here") == b"still here"
    way.close()


def test_an_impostor_learns_nothing() -> None:
    heard = bytearray()
    listener = socket.create_server((HOST, 0))

    def pretend() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.sendall(handshake.challenge())
            while len(heard) < handshake.RESPONSE_BYTES:
                heard.extend(connection.recv(65536))
            connection.sendall(bytes(handshake.CONFIRMATION_BYTES))
            heard.extend(connection.recv(65536))

    thread = threading.Thread(target=pretend, daemon=True)
    thread.start()
    with pytest.raises(ConfigError, match="another secret"):
        WayIn(HOST, listener.getsockname()[1], SECRET, 10.0)
    thread.join(10)
    listener.close()
    assert len(heard) == handshake.RESPONSE_BYTES


def test_a_leader_that_does_not_come_is_waited_for_and_then_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot meet the others at 127\.0\.0\.1:"):
        WayIn(HOST, free_ports(1)[0], SECRET, 0.0)


def test_addresses_have_interfaces() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") is None


FOLLOW = [sys.executable, "-m", "dualpath", "model", "follow", "--world", "2", "--rank", "1", "--dtype", "float32"]
LEADER = """
import sys, time
from dualpath.models.parallel.leader import start_leader
port, secret, model_dir = int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3]
together = start_leader(
    model_dir, 2, dtype="float32", fingerprint="00", listen=("127.0.0.1", port), secret=secret, timeout_s=100.0
)
print("ready", flush=True)
sys.stdin.readline()
together.close()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)  # processes that import torch, on machines with other work
def test_a_follower_comes_from_elsewhere_with_the_secret_only(model_dir_of: Callable[[str], Path]) -> None:
    model_dir, port, secret = str(model_dir_of("llama")), free_ports(1)[0], "0123456789abcdef"
    words = [*FOLLOW, "--model", model_dir, "--master", f"{HOST}:{port}"]
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER, str(port), secret, model_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    environment = {name: value for name, value in os.environ.items() if name != "DUALPATH_SECRET"}
    try:
        none = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100)
        assert (none.returncode, none.stderr.count("\n")) == (2, 1)
        assert "DUALPATH_SECRET" in none.stderr
        environment["DUALPATH_SECRET"] = "another of that length"
        wrong = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100)
        assert wrong.returncode == 2
        assert "has another secret" in wrong.stderr
        follower = subprocess.Popen(words, env=environment | {"DUALPATH_SECRET": secret})
        assert leader.stdout is not None
        assert leader.stdout.readline() == "ready\n"
        assert all(address.is_loopback for pid in (leader.pid, follower.pid) for address, _ in listening(pid))
        leader.communicate("end\n", timeout=60)
        assert follower.wait(60) == 0
    finally:
        leader.kill()
        leader.wait()
