"""Serve the app over HTTP until told to stop; then let running requests end, up to a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from dualpath.core.errors import ConfigError
from dualpath.gateway.http.protocol import Connections, HttpProtocol
from dualpath.gateway.http.refusals import RefusalCounter
from dualpath.gateway.settings import ConnectionLimits

T = TypeVar("T")

BACKLOG = 2048
MAX_CONNECTIONS = 4096  # unless a number is set
POLL_S = 0.005
_DEFAULT_LIMITS = ConnectionLimits()


async def serve(
    app: FastAPI,
    host: str,
    port: int,
    *,
    drain_s: Callable[[], float] = lambda: 30.0,
    stop: asyncio.Event | None = None,
    handle_signals: bool = True,
    on_listening: Callable[[str, int], None] | None = None,
    access_log: bool = False,
    limits: ConnectionLimits = _DEFAULT_LIMITS,
    refusals: RefusalCounter | None = None,
    other_ports: Sequence[int] = (),
) -> None:
    """Returns after a graceful end: ``stop`` set or, where ``handle_signals``, SIGINT or SIGTERM.

    Requests still running ``drain_s`` seconds after the stop, which is when that is asked, are cancelled; a second
    signal, or cancelling ``serve``, cancels them at once. In each case they have let go of everything on return.
    ``port`` 0 takes a free one, told to ``on_listening``. ``refusals`` counts what the app never sees.
    ``other_ports``: the first of them that is free is taken where ``port`` is not. Raises ConfigError if the address
    cannot be had.
    """
    sock = _listen_first(host, (port, *other_ports))
    stop = stop or asyncio.Event()
    max_connections = limits.max_connections or _affordable_connections()
    shared = Connections(limits, max_connections, refusals or RefusalCounter(CollectorRegistry()))
    server = _server(app, shared, access_log=access_log)
    with sock, _signals(stop, server) if handle_signals else contextlib.nullcontext():
        running = asyncio.ensure_future(server.serve(sockets=[sock]))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await server.wait_started(running)
            if on_listening is not None:
                on_listening(host, sock.getsockname()[1])
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            server.config.timeout_graceful_shutdown = drain_s()  # type: ignore[assignment]  # waits take fractions too
            server.should_exit = True
            await asyncio.shield(running)
        except asyncio.CancelledError:
            server.force_exit = server.should_exit = True
            raise
        finally:
            stopping.cancel()
            await _let_go(server, running)


def run(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


class _Server(uvicorn.Server):
    """Leaves signals to us: other parts of the process have to be shut down in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def wait_started(self, running: asyncio.Future[None]) -> None:
        while not self.started and not running.done():  # noqa: ASYNC110  uvicorn offers no event for it
            await asyncio.sleep(POLL_S)


def _affordable_connections() -> int:
    """Half of the files that the process may open: the store and the transports need the others."""
    max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if max_files == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, max(1, max_files // 2))


def _server(app: FastAPI, shared: Connections, *, access_log: bool) -> _Server:
    config = uvicorn.Config(
        app,
        http=partial(HttpProtocol, shared=shared),  # type: ignore[arg-type]  # it is called, and nothing else
        log_config=None,
        access_log=access_log,
        ws="none",
        timeout_graceful_shutdown=0,
        server_header=False,
    )
    return _Server(config)


async def _let_go(server: _Server, running: asyncio.Future[None]) -> None:
    """Wait until uvicorn has ended, and every request it cancelled or abandoned has closed its iterators."""
    if server.force_exit:
        for task in server.server_state.tasks:
            task.cancel()
    await running
    if server.server_state.tasks:
        await asyncio.wait(list(server.server_state.tasks))


def _listen_first(host: str, ports: Sequence[int]) -> socket.socket:
    """Raises ConfigError, about the first of them, where none can be had."""
    errors: list[ConfigError] = []
    for port in ports:
        try:
            return _listen(host, port)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        sock.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}") from error
    sock.setblocking(False)
    return sock


@contextlib.contextmanager
def _signals(stop: asyncio.Event, server: uvicorn.Server) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            server.force_exit = True
        stop.set()

    handled = (signal.SIGINT, signal.SIGTERM)
    for number in handled:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
