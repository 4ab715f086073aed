"""TCP between hosts of a testbed, for tests: ``sink ADDRESS PORT`` swallows, ``send ADDRESS PORT SECONDS`` pushes."""

from __future__ import annotations

import socket
import sys
import threading
import time

CHUNK = bytes(1 << 18)


def sink(address: str, port: int) -> None:
    """Says "ready", then takes any number of connections, a thread for each, until it is ended."""
    with socket.create_server((address, port)) as server:
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_swallow, args=(connection,), daemon=True).start()


def _swallow(connection: socket.socket) -> None:
    with connection:
        while connection.recv(len(CHUNK)):
            pass


def send(address: str, port: int, duration_s: float) -> None:
    with socket.create_connection((address, port), timeout=10) as connection:
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            connection.sendall(CHUNK)


if __name__ == "__main__":
    verb, address, port, *rest = sys.argv[1:]
    if verb == "sink":
        sink(address, int(port))
    else:
        send(address, int(port), float(rest[0]))
