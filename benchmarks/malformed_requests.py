"""Thousands of requests that no well-behaved client sends, at a running server: no 5xx, no hang, no growing memory.

With --schemathesis, the path of its command, that tool's own requests for the OpenAPI document are sent as well.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx

from dualpath.bench.odd_requests import OddRequest, odd_requests
from dualpath.bench.raw_http import statuses_of
from dualpath.bench.server import running_server, store_url
from dualpath.models.init import init_model

HANG_S = 60.0
WARM_UP = 0.2  # of the requests: caches fill up
MAX_GROWTH_BYTES = 64 << 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Short deadlines, as many of these requests never become whole.
FLAGS = ["--prefill", "1", "--decode", "1", "--max-context-tokens", "768", "--header-timeout-s", "1"]
FLAGS += ["--body-timeout-s", "1", "--log-level", "warning"]


def children_of(parent: int) -> list[int]:
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(pid) for pid in text.split()]


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


class Campaign:
    def __init__(self, url: str, num_concurrent: int) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._host, self._port = host, int(port)
        self._num_concurrent = num_concurrent
        self.by_status: Counter[str] = Counter()
        self.by_kind: Counter[str] = Counter()
        self.failures: list[str] = []

    async def send(self, requests: Iterator[OddRequest]) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._num_concurrent):
                group.create_task(self._work(requests))

    async def _work(self, requests: Iterator[OddRequest]) -> None:
        for request in requests:
            self.by_kind[request.kind] += 1
            try:
                statuses = await statuses_of(self._host, self._port, request.raw, HANG_S)
            except TimeoutError:
                self._fail("hang", request)
                continue
            self.by_status.update([str(status) for status in statuses] or ["closed"])
            for status in statuses:
                if status >= 500:
                    self._fail(str(status), request)

    def _fail(self, what: str, request: OddRequest) -> None:
        self.failures.append(f"{what}: {request.kind}: {request.raw[:400]!r}")


def run_schemathesis(command: str, url: str, num_examples: int) -> bool:
    """Whether it found no server error."""
    options = ["--checks", "not_a_server_error", "--max-examples", str(num_examples), "--mode", "all", "--seed", "1"]
    options += ["--phases", "examples,coverage,fuzzing", "--workers", "2", "--continue-on-failure", "--no-color"]
    options += ["--request-timeout", str(HANG_S), "--suppress-health-check", "all"]
    return subprocess.run([command, "run", f"{url}/openapi.json", *options], check=False).returncode == 0


async def main_async(number: int, seed: int, num_concurrent: int, schemathesis: str | None, num_examples: int) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        model_dir = init_model("llama", Path(scratch) / "model", layers=2)
        flags = ["--model", str(model_dir), "--store", store_url(Path(scratch) / "kv"), *FLAGS]
        async with running_server(flags) as url:
            (pid,) = children_of(os.getpid())
            campaign = Campaign(url, num_concurrent)
            requests = list(odd_requests(seed, number))
            num_warm = int(WARM_UP * number)
            await campaign.send(iter(requests[:num_warm]))
            before, start_s = rss_bytes(pid), time.perf_counter()
            await campaign.send(iter(requests[num_warm:]))
            after, took_s = rss_bytes(pid), time.perf_counter() - start_s
            print(f"{number} requests, {(number - num_warm) / took_s:.0f} a second")
            print("answers:", dict(sorted(campaign.by_status.items())))
            print("kinds:", dict(sorted(campaign.by_kind.items())))
            print(f"RSS: {before / 2**20:.0f} MiB after {num_warm}, {after / 2**20:.0f} MiB after all")
            good = after - before <= MAX_GROWTH_BYTES and not campaign.failures
            for line in campaign.failures[:20]:
                print(line)
            if schemathesis is not None:
                before = rss_bytes(pid)
                good &= await asyncio.to_thread(run_schemathesis, schemathesis, url, num_examples)
                after = rss_bytes(pid)
                print(f"RSS: {before / 2**20:.0f} MiB before schemathesis, {after / 2**20:.0f} MiB after it")
            good &= await is_well(url)
    print("well" if good else "NOT WELL")
    return 0 if good else 1


async def is_well(url: str) -> bool:
    """It still answers, and nothing of all that is left in it."""
    async with httpx.AsyncClient(base_url=url, timeout=HANG_S) as client:
        answer = await client.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 2})
        stats = (await client.get("/v1/dualpath/stats")).json()
    print("then:", answer.status_code, {name: stats[name] for name in ("num_running_requests", "num_queued_requests")})
    return answer.status_code == 200 and stats["num_running_requests"] == stats["num_queued_requests"] == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--concurrent", type=int, default=32)
    parser.add_argument("--schemathesis", metavar="COMMAND")
    parser.add_argument("--examples", type=int, default=500, help="of schemathesis, for each operation")
    args = parser.parse_args()
    return asyncio.run(main_async(args.requests, args.seed, args.concurrent, args.schemathesis, args.examples))


if __name__ == "__main__":
    sys.exit(main())
