"""A DualPath server as a child process: started on a free port, waited for, and ended without leftovers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from dualpath.core.errors import DualPathError

START_DEADLINE_S = 300.0  # a loaded machine takes minutes to import torch
STOP_DEADLINE_S = 30.0
_LISTENING = re.compile(r"^listening on (\S+)$", re.MULTILINE)


@asynccontextmanager
async def running_server(flags: Sequence[str], *, start_s: float = START_DEADLINE_S) -> AsyncIterator[str]:
    """``dualpath serve`` with these flags; yields its base URL once it is ready, TimeoutError after ``start_s``.

    Output is shown only on failure.
    """
    with tempfile.NamedTemporaryFile() as log:
        command = [sys.executable, "-m", "dualpath", "serve", "--port", "0", *flags]
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=os.environ)
        try:
            yield await _until_ready(process, Path(log.name), start_s)
        finally:
            await _stop(process)


async def _until_ready(process: asyncio.subprocess.Process, log: Path, start_s: float) -> str:
    """Its base URL."""
    async with httpx.AsyncClient() as client, asyncio.timeout(start_s):
        while process.returncode is None:
            if found := _LISTENING.search(_read(log)):
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"{found[1]}/health")).status_code == 200:
                        return found[1]
            await asyncio.sleep(0.1)
    raise DualPathError(f"the server ended with code {process.returncode} before it was ready:\n{_read(log)}")


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


async def _stop(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):  # the second ends running requests, too
        if process.returncode is None:
            process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_DEADLINE_S):
                    await process.wait()


def store_url(directory: Path) -> str:
    return f"file://{directory.resolve()}"
