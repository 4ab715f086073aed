"""A headless Chromium, driven over its debugging port: open a page, ask it things, look at it. A WebSocket, by hand."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHROMIUM = shutil.which("chromium")
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    "about:blank",
]


class Page:
    """One tab. ``complaints``: what its console has said as a warning or an error, and exceptions."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._numbers, self._answers = itertools.count(1), dict[int, asyncio.Future[Any]]()
        self._listening = asyncio.create_task(self._listen())
        self.complaints: list[str] = []

    async def open(self, url: str, width: int = 1100, height: int = 1000) -> None:
        await self.call("Runtime.enable")
        await self.call("Log.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        await self.call("Page.navigate", url=url)

    async def value(self, expression: str) -> Any:
        """Of JavaScript."""
        return (await self.call("Runtime.evaluate", expression=expression, returnByValue=True))["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait for JavaScript that is true. Raises TimeoutError with what the page shows instead."""
        try:
            async with asyncio.timeout(30):
                while not await self.value(expression):  # noqa: ASYNC110  nobody tells us
                    await asyncio.sleep(0.1)
        except TimeoutError:
            shown = await self.value("document.body.innerText")
            raise TimeoutError(f"{expression}: the page shows {shown}") from None

    async def screenshot(self, file: Path) -> None:
        found = await self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(found["data"]))  # noqa: ASYNC240  (a test waits for nothing else)

    async def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._send(json.dumps({"id": number, "method": method, "params": parameters}).encode())
        return await asyncio.wait_for(answer, 30)

    def _send(self, text: bytes) -> None:
        """A masked text frame; the mask is zero, as nobody between reads it."""
        size = len(text)
        head = struct.pack("!BB", 0x81, 0x80 | size) if size < 126 else struct.pack("!BBQ", 0x81, 0x80 | 127, size)
        self._writer.write(head + bytes(4) + text)

    async def _listen(self) -> None:
        text = b""
        while True:
            first, second = await self._reader.readexactly(2)
            size = second & 0x7F
            if size >= 126:
                size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8), "big")
            text += await self._reader.readexactly(size)
            if first & 0x80:  # the last part
                self._take(json.loads(text))
                text = b""

    def _take(self, message: dict[str, Any]) -> None:
        if (answer := self._answers.pop(message.get("id", 0), None)) is not None:
            answer.set_result(message.get("result", {}))
        elif message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(message["params"]["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(message["params"]["entry"]))

    async def close(self) -> None:
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._writer.close()


@asynccontextmanager
async def browsing() -> AsyncIterator[Page]:
    """A browser of its own, ended at the end."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(prefix="dualpath-chromium-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            CHROMIUM, f"--user-data-dir={profile}", *_FLAGS,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            page = await _tab(await _port(Path(profile)))
            try:
                yield page
            finally:
                await page.close()
        finally:
            process.terminate()
            await process.wait()


async def _port(profile: Path) -> int:
    """Chromium writes it down when it listens."""
    async with asyncio.timeout(60):
        while True:
            with suppress(OSError, ValueError, IndexError):
                return int((profile / "DevToolsActivePort").read_text().split()[0])
            await asyncio.sleep(0.1)


async def _tab(port: int) -> Page:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /json HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    size = re.search(rb"(?i)content-length: *(\d+)", head)
    assert size is not None
    tabs = json.loads(await reader.readexactly(int(size[1])))
    writer.close()
    path = urlsplit(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")).path
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade"]
    writer.write("\r\n".join([*lines, f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]).encode())
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    return Page(reader, writer)
