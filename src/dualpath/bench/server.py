"""A DualPath server as a child process: started on a free port, waited for, and ended without leftovers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from dualpath.core.errors import DualPathError

START_DEADLINE_S = 300.0  # a loaded machine takes minutes to import torch
STOP_DEADLINE_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running_server(flags: Sequence[str]) -> AsyncIterator[str]:
    """``dualpath serve`` with these flags; yields its base URL once it is ready. Output is shown only on failure."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "dualpath", "serve", "--port", str(port), *flags]
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=os.environ)
        try:
            await _until_ready(process, url, log)
            yield url
        finally:
            await _stop(process)


async def _until_ready(process: asyncio.subprocess.Process, url: str, log: object) -> None:
    async with httpx.AsyncClient() as client, asyncio.timeout(START_DEADLINE_S):
        while process.returncode is None:
            try:
                if (await client.get(f"{url}/health")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
    log.seek(0)  # type: ignore[attr-defined]
    output = log.read().decode(errors="replace")  # type: ignore[attr-defined]
    raise DualPathError(f"the server ended with code {process.returncode} before it was ready:\n{output}")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(STOP_DEADLINE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def store_url(directory: Path) -> str:
    return f"file://{directory.resolve()}"
