"""What do the live page and ``dualpath why`` cost a server that answers 100 requests a second, and do they slow it?

A real gateway and scheduler in a process of their own; engines compute nothing. Its CPU time is read from /proc, while
nothing but pages is served, and while requests come (open loop); latencies are the clients'. Pages are connections
that read the stream and ask again, from another process. The parts are repeated in turn: read ratios, and the load.

    python benchmarks/page_cost.py --pages 1 16 1000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from scheduler_scale import IdleEngine, _scheduler

from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import PeerId
from dualpath.core.latency import Latencies
from dualpath.core.stats import EngineStats
from dualpath.store.header import object_bytes
from dualpath.store.index import BlockIndex

LAYERS = 32
KEPT_RECORDS = 1000
BODY = json.dumps({"model": "idle", "prompt": "x" * 300, "max_tokens": 8, "temperature": 0}).encode()


async def _stats(engine: IdleEngine) -> EngineStats:
    """As large as a real one's."""
    counted = Latencies()
    counted.add(0.01)
    info = engine.info
    empty = EngineStats(info.engine_id, info.node_id, info.role)
    stalls = tuple(time.monotonic() / (layer + 7) for layer in range(LAYERS))
    return replace(
        empty, storage_read_latency=counted.snapshot(), storage_write_latency=counted.snapshot(),
        prefill_stall_s=stalls, prefill_forward_s=time.monotonic(), kv_transfer_bytes={"decode_to_prefill": 1},
        peers=tuple(PeerId(f"peer{number}") for number in range(16)),
    )  # fmt: skip


async def _serve(model_dir: Path, num_engines: int) -> None:
    from dualpath.cluster.setup import keep_loaded
    from dualpath.gateway.app import create_app  # torch and friends: clients start without them
    from dualpath.gateway.http.server import serve
    from dualpath.gateway.text.tokenizer import Tokenizer
    from dualpath.serving.replay import replay

    IdleEngine.stats = _stats  # type: ignore[assignment, method-assign]
    geometry = KvGeometry(num_layers=1, block_tokens=64, bytes_per_token_layer=16)
    scheduler = _scheduler(num_engines, BlockIndex(object_bytes(geometry)))
    await scheduler.start()
    app = create_app(scheduler.service, Tokenizer.load(model_dir), replay=replay)
    keep_loaded()
    await serve(app, "127.0.0.1", 0, on_listening=lambda _, port: print(port, flush=True))


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Connection:
    """Keep-alive HTTP/1.1, by hand: a client must cost less than what it measures."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The answer's body. Raises OSError where it is no 200."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in answer.split(b"\r\n")[0]:
            self._streams = None
            writer.close()
            raise OSError(answer.split(b"\r\n")[0].decode())
        if b"content-length: " in answer:
            size = int(answer.split(b"content-length: ")[1].split(b"\r\n")[0])
            return await reader.readexactly(size)
        parts = []
        while size := int(await reader.readline(), 16):
            parts.append((await reader.readexactly(size + 2))[:-2])
        await reader.readline()
        return b"".join(parts)


async def _pages(port: int, number: int) -> None:
    """Pages that read and ask again, until they are ended; a line when all have had something."""
    seen = 0

    async def page() -> None:
        nonlocal seen
        connection, is_first = Connection(port), True
        await asyncio.sleep(random.random() * 5)
        while True:
            try:
                events = await connection.ask("GET", "/dualpath/events")
                seen += is_first
                if is_first and seen == number:
                    print("all are there", flush=True)
                is_first = False
                await asyncio.sleep(int(events.split(b"retry: ")[1].split()[0]) / 1000)
            except OSError:
                await asyncio.sleep(1.0)

    await asyncio.gather(*(page() for _ in range(number)))


@asynccontextmanager
async def _open_pages(port: int, number: int) -> AsyncIterator[None]:
    if not number:
        yield
        return
    words = (sys.executable, __file__, "--watch", str(port), "--pages", str(number))
    process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        await asyncio.wait_for(process.stdout.readline(), 120)
        yield
    finally:
        process.kill()
        await process.wait()


async def _load(port: int, per_s: float, duration_s: float) -> list[float]:
    """Requests come by the clock, whether others are answered or not. Returns latencies in seconds."""
    idle: list[Connection] = []
    latencies_s: list[float] = []

    async def turn(due_s: float) -> None:
        connection = idle.pop() if idle else Connection(port)
        await connection.ask("POST", "/v1/completions", BODY)
        latencies_s.append(time.perf_counter() - due_s)
        idle.append(connection)

    start_s, tasks = time.perf_counter(), []
    for number in range(round(per_s * duration_s)):
        due_s = start_s + number / per_s
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(turn(due_s)))
    await asyncio.gather(*tasks)
    return latencies_s


async def _measure(port: int, pid: int, numbers: Sequence[int], per_s: float, part_s: float, rounds: int) -> None:
    await _load(port, per_s, KEPT_RECORDS / per_s)
    idle = {number: list[float]() for number in (0, *numbers)}
    busy = {number: list[float]() for number in (0, *numbers)}
    latencies_s = {number: list[float]() for number in (0, *numbers)}
    for _ in range(rounds):
        for number in idle:
            async with _open_pages(port, number):
                before_s = cpu_s(pid)
                await asyncio.sleep(part_s)
                middle_s = cpu_s(pid)
                latencies_s[number] += await _load(port, per_s, part_s)
                idle[number].append((middle_s - before_s) / part_s)
                busy[number].append((cpu_s(pid) - middle_s) / part_s)
    print("pages | CPU without requests | with | request p50, p90, p99, ms   (medians of rounds; all requests)")
    for number in idle:
        p = statistics.quantiles(latencies_s[number], n=100)
        times = ", ".join(f"{1e3 * p[share - 1]:.1f}" for share in (50, 90, 99))
        print(f"{number:5} | {statistics.median(idle[number]):.2%} | {statistics.median(busy[number]):.1%} | {times}")
    base_s = statistics.median(idle[0])
    await _why(port, pid, base_s)


async def _why(port: int, pid: int, base_share: float) -> None:
    """What one ``dualpath why`` asks of the server."""
    connection, times, start_s, before_s = Connection(port), 50, time.perf_counter(), cpu_s(pid)
    for _ in range(times):
        num = len(await connection.ask("GET", "/v1/dualpath/requests?limit=1000"))
        num += len(await connection.ask("GET", "/v1/dualpath/stats"))
    spent_s = cpu_s(pid) - before_s - base_share * (time.perf_counter() - start_s)
    print(f"one look of dualpath why: {1e3 * spent_s / times:.1f} ms of CPU in the server, {num / 1024:.0f} KiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, nargs="+", default=[1, 16, 1000])
    parser.add_argument("--engines", type=int, default=24)
    parser.add_argument("--requests-per-s", type=float, default=100.0)
    parser.add_argument("--part-s", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--watch", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        from dualpath.gateway.http.server import run

        run(_serve(given.serve, given.engines))
    elif given.watch is not None:
        asyncio.run(_pages(given.watch, given.pages[0]))
    else:
        from dualpath.models.init import init_model

        with tempfile.TemporaryDirectory() as scratch:
            model_dir = init_model("llama", Path(scratch) / "model")
            words = [sys.executable, __file__, "--serve", str(model_dir), "--engines", str(given.engines)]
            server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            try:
                assert server.stdout is not None
                port = int(server.stdout.readline())
                about = f"{given.engines} engines, {given.requests_per_s:g} requests/s, {os.cpu_count()} cores"
                print(f"{about}, load {os.getloadavg()[0]:.1f}", flush=True)
                asyncio.run(_measure(port, server.pid, given.pages, given.requests_per_s, given.part_s, given.rounds))
                print(f"load {os.getloadavg()[0]:.1f} at the end")
            finally:
                server.kill()
                server.wait()


if __name__ == "__main__":
    main()
