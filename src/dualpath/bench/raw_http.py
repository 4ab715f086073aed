"""Bytes over a connection of their own, whatever they are, and the statuses of the answers that come back."""

from __future__ import annotations

import asyncio

MORE_S = 0.02  # for the answers to requests that were sent behind the first


async def statuses_of(host: str, port: int, raw: bytes, timeout_s: float) -> list[int]:
    """Of every whole answer, in order; none if the server closes without one. TimeoutError if it does neither."""
    statuses: list[int] = []
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
        try:
            writer.write(raw)
            statuses.append(await _read_answer(reader, has_body=not raw.startswith(b"HEAD ")))
            while True:
                async with asyncio.timeout(MORE_S):
                    statuses.append(await _read_answer(reader))
        except (ConnectionError, asyncio.IncompleteReadError):
            return statuses
        except TimeoutError:
            if statuses:
                return statuses
            raise
        finally:
            writer.transport.abort()


async def _read_answer(reader: asyncio.StreamReader, *, has_body: bool = True) -> int:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head.split(b" ", 2)[1])
        if status >= 200:  # not a "100 Continue"
            break
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if not has_body:
        return status
    if b"content-length" in fields:
        await reader.readexactly(int(fields[b"content-length"]))
    elif fields.get(b"transfer-encoding") == b"chunked":
        await reader.readuntil(b"0\r\n\r\n")
    else:
        await reader.read()
    return status
