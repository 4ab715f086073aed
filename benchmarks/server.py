"""A running server's overheads: CPU while idle, memory over many requests, requests per second of short turns."""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

import httpx

from dualpath.bench.server import running_server, store_url
from dualpath.models.init import init_model

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def children_of(parent: int) -> list[int]:
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(pid) for pid in text.split()]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


async def main_async(num_requests: int, idle_s: float) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        model_dir = init_model("llama", Path(scratch) / "model")
        flags = [
            "--model",
            str(model_dir),
            "--store",
            store_url(Path(scratch) / "kv"),
            "--prefill",
            "1",
            "--decode",
            "2",
        ]
        async with (
            running_server([*flags, "--max-context-tokens", "4096"]) as url,
            httpx.AsyncClient(timeout=60) as client,
        ):
            (pid,) = children_of(os.getpid())

            async def turn(number: int) -> None:
                body = {"model": "model", "prompt": f"{number} " + "x" * 700, "max_tokens": 8, "temperature": 0}
                (await client.post(f"{url}/v1/completions", json=body)).raise_for_status()

            for number in range(20):
                await turn(number)
            before_s = cpu_s(pid)
            await asyncio.sleep(idle_s)
            print(f"idle: {(cpu_s(pid) - before_s) / idle_s:.2%} of one core over {idle_s:g} s, three engines")
            start_s, step = time.perf_counter(), max(1, num_requests // 5)
            print(f"RSS after 20 requests: {rss_bytes(pid) / 2**20:.0f} MiB")
            for first in range(0, num_requests, step):
                for number in range(first, first + step, 4):
                    await asyncio.gather(*(turn(1000 + number + i) for i in range(4)))
                print(f"RSS after {20 + first + step} requests: {rss_bytes(pid) / 2**20:.0f} MiB")
            print(f"{num_requests / (time.perf_counter() - start_s):.1f} requests/s, 4 at a time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--idle-s", type=float, default=10.0)
    arguments = parser.parse_args()
    asyncio.run(main_async(arguments.requests, arguments.idle_s))


if __name__ == "__main__":
    main()
