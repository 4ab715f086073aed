"""An authenticating proxy before the leader's key-value store, for processes on other hosts.

The store listens on the leader's loopback only. Before it stands a ``Door`` at the given address: who proves to know
the secret is passed on. At a follower, ``ways_in`` takes what torch says to a loopback port there to that door.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable

from dualpath.core import handshake
from dualpath.core.errors import ConfigError

_log = logging.getLogger(__name__)
_HANDSHAKE_S = 5.0
_RETRY_S = 0.5
_PIECE_BYTES = 65536
_MAX_STRANGERS = 64  # connections at once that have proved nothing yet
_LOOPBACK = "127.0.0.1"


class Door:
    """Listens on one address; a thread for each connection. Raises ConfigError where it cannot listen there."""

    def __init__(self, host: str, port: int, secret: bytes, store_port: int) -> None:
        self._secret, self._store_port = secret, store_port
        self.refusals = handshake.Refusals(_log, f"{host}:{port}")
        self._strangers = threading.BoundedSemaphore(_MAX_STRANGERS)
        self._num_inside, self._has_changed = 0, threading.Condition()
        self._listener = _listen(host, port)
        self.port: int = self._listener.getsockname()[1]
        _start(lambda: _accept(self._listener, self._admit))

    def close(self, wait_s: float = 0.0) -> None:
        """Nobody new comes in; wait for those inside to leave, which have been told by then."""
        _end(self._listener)
        with self._has_changed:
            self._has_changed.wait_for(lambda: self._num_inside == 0, wait_s)

    def _admit(self, connection: socket.socket) -> None:
        whose, is_known = _name_of(connection), False
        if self._strangers.acquire(blocking=False):
            is_known = _asks(connection, self._secret)
            self._strangers.release()
        if not is_known:
            self.refusals.add(whose)
            connection.close()
            return
        self._count(1)
        with contextlib.suppress(OSError):
            _join(connection, socket.create_connection((_LOOPBACK, self._store_port), _HANDSHAKE_S))
        connection.close()
        self._count(-1)

    def _count(self, change: int) -> None:
        with self._has_changed:
            self._num_inside += change
            self._has_changed.notify_all()


class WayIn:
    """A loopback port whose connections end at the leader's store. Waits for the leader, up to ``timeout_s``.

    Raises ConfigError where the leader is not there in time, or has another secret.
    """

    def __init__(self, host: str, port: int, secret: bytes, timeout_s: float) -> None:
        self._place, self._secret = (host, port), secret
        self._first: socket.socket | None = self._knock(time.monotonic() + timeout_s)
        self._listener = _listen(_LOOPBACK, 0)
        self.port: int = self._listener.getsockname()[1]
        _start(lambda: _accept(self._listener, self._lead))

    def close(self) -> None:
        _end(self._listener)
        if self._first is not None:
            self._first.close()

    def _lead(self, connection: socket.socket) -> None:
        first, self._first = self._first, None
        try:
            _join(connection, first or self._knock(time.monotonic() + _HANDSHAKE_S))
        except ConfigError as error:
            _log.error("%s", error)
            connection.close()

    def _knock(self, deadline_s: float) -> socket.socket:
        host, port = self._place
        while True:
            try:
                connection = socket.create_connection(self._place, _HANDSHAKE_S)
                break
            except OSError as error:
                if time.monotonic() > deadline_s:
                    raise ConfigError(f"cannot meet the others at {host}:{port}: {error.strerror or error}") from None
                time.sleep(_RETRY_S)
        if not _proves(connection, self._secret):
            connection.close()
            raise ConfigError(f"{host}:{port} has another secret, or is no leader")
        return connection


def _asks(connection: socket.socket, secret: bytes) -> bool:
    """The listener's half of the handshake. Reads no more than a proof has."""
    asked = handshake.challenge()
    with contextlib.suppress(OSError):
        connection.settimeout(_HANDSHAKE_S)
        connection.sendall(asked)
        confirmation = handshake.confirm(secret, asked, _read(connection, handshake.RESPONSE_BYTES))
        if confirmation is not None:
            connection.sendall(confirmation)
            return True
    return False


def _proves(connection: socket.socket, secret: bytes) -> bool:
    with contextlib.suppress(OSError):
        connection.settimeout(_HANDSHAKE_S)
        asked = _read(connection, handshake.CHALLENGE_BYTES)
        response = handshake.respond(secret, asked)
        if response is not None:
            connection.sendall(response)
            confirmation = _read(connection, handshake.CONFIRMATION_BYTES)
            return handshake.is_confirmed(secret, asked, response, confirmation)
    return False


def _read(connection: socket.socket, num_bytes: int) -> bytes:
    """Within ``_HANDSHAKE_S`` altogether, however slowly they come. Raises OSError."""
    deadline_s, text = time.monotonic() + _HANDSHAKE_S, b""
    while len(text) < num_bytes:
        connection.settimeout(max(0.001, deadline_s - time.monotonic()))
        piece = connection.recv(num_bytes - len(text))
        if not piece:
            raise ConnectionResetError
        text += piece
    return text


def _join(one: socket.socket, other: socket.socket) -> None:
    """What comes from one goes to the other, until either ends."""
    for end in (one, other):
        end.settimeout(None)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    _start(lambda: _pump(one, other))
    _pump(other, one)
    one.close()
    other.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            target.sendall(piece)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


def _accept(listener: socket.socket, take: Callable[[socket.socket], None]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # closed
        _start(lambda connection=connection: take(connection))  # type: ignore[misc]


def _start(run: Callable[[], None]) -> None:
    threading.Thread(target=run, daemon=True).start()


def _end(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # ends accept
    listener.close()


def _name_of(connection: socket.socket) -> object:
    try:
        return connection.getpeername()
    except OSError:
        return "somebody who has gone"
