"""A system started and ended by the command line, as a user would, and what a test does to its processes."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from dualpath.preflight.ports import why_not_listen
from dualpath.ray.run_dir import RunDir

BLOCK_TOKENS = 16
MBPS = 800.0

CONFIG = """\
[model]
dir = "{model}"
served_name = "tiny"
[store]
url = "file://{store}"
block_tokens = {block_tokens}
[cluster]
threads_per_engine = 1
[memory]
max_context_tokens = 2048
prefill_staging_bytes = "32MiB"
decode_staging_bytes = "32MiB"
decode_kv_tokens = 8192
[gateway]
port = {port}
[ray]
name = "{name}"
[[nodes]]
name = "pe0"
role = "prefill"
storage_nic_mbps = {mbps}
pace_storage = true
[[nodes]]
name = "de0"
role = "decode"
[[nodes]]
name = "de1"
role = "decode"
env = ["DUALPATH_TEST_MARK=de1"]
"""


def dualpath(*arguments: str, limit_s: float = 240.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dualpath", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)


class UpSystem:
    """One that is up."""

    def __init__(self, name: str, url: str, started_s: float) -> None:
        self.name, self.url, self.started_s = name, url, started_s

    def status(self) -> dict[str, Any]:
        done = dualpath("status", "--cluster-name", self.name, "--json", "--interval-s", "0.2")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    async def node(self, name: str) -> dict[str, Any]:
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as http:
            stats = (await http.get("/v1/dualpath/stats")).json()
        found: dict[str, Any] = next(node for node in stats["nodes"] if node["node_id"] == name)
        return found

    async def until(self, name: str, is_up: bool, deadline_s: float = 90.0) -> float:
        """Seconds until the scheduler takes the node for (not) up."""
        start_s = time.monotonic()
        async with asyncio.timeout(deadline_s):
            while (await self.node(name))["is_up"] is not is_up:  # noqa: ASYNC110  (another process)
                await asyncio.sleep(0.05)
        return time.monotonic() - start_s

    async def serving(self, name: str, deadline_s: float = 90.0) -> None:
        """Until the node's engine has answered the scheduler and is given work."""
        async with asyncio.timeout(deadline_s), httpx.AsyncClient(base_url=self.url, timeout=30) as http:
            while True:
                stats = (await http.get("/v1/dualpath/stats")).json()
                if any(engine["node_id"] == name for engine in stats["engines"]):
                    return
                await asyncio.sleep(0.1)

    async def held(self) -> list[Any]:
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as http:
            engines = (await http.get("/v1/dualpath/stats")).json()["engines"]
        return [e for e in engines if e["num_requests"] or e["staging_slots_used"] or e["device_kv_used_bytes"]]

    async def nothing_held(self, deadline_s: float = 30.0) -> None:
        async with asyncio.timeout(deadline_s):
            while await self.held():  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def complete(self, prompt: Sequence[int], num_tokens: int, **extra: Any) -> dict[str, Any]:
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as http:
            answer = await http.post("/v1/completions", json=body(prompt, num_tokens) | extra)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def stream(self, prompt: Sequence[int], num_tokens: int, **extra: Any) -> AsyncIterator[str]:
        """The text of every chunk."""
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as http:
            payload = body(prompt, num_tokens) | {"stream": True} | extra
            async with http.stream("POST", "/v1/completions", json=payload) as answer:
                assert answer.status_code == 200
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        chunk = json.loads(line[6:])
                        assert "error" not in chunk, chunk
                        yield "".join(choice["text"] for choice in chunk["choices"])

    async def decode_engine(self) -> str:
        """Of the newest request."""
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as http:
            (record,) = (await http.get("/v1/dualpath/requests?limit=1")).json()["data"]
        return str(record["decode_engine"])

    async def record(self) -> dict[str, Any]:
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as http:
            (record,) = (await http.get("/v1/dualpath/requests?limit=1")).json()["data"]
        found: dict[str, Any] = record
        return found


def body(prompt: Sequence[int], num_tokens: int) -> dict[str, Any]:
    return {
        "model": "tiny",
        "prompt": list(prompt),
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "skip_special_tokens": False,
    }


async def text_of(stream: AsyncIterator[str], begun: asyncio.Event) -> str:
    """``begun`` when it is well under way."""
    text, num_chunks = "", 0
    async for piece in stream:
        text += piece
        num_chunks += 1
        if num_chunks == 80:
            begun.set()
    return text


async def until_healthy(gateway: UpSystem, deadline_s: float = 60.0) -> float:
    start_s = time.monotonic()
    async with asyncio.timeout(deadline_s), httpx.AsyncClient(base_url=gateway.url, timeout=5) as http:
        while True:
            try:
                if (await http.get("/health")).status_code == 200:
                    return time.monotonic() - start_s
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.1)


def actors_of(name: str, kind: str) -> list[int]:
    """Process ids. Ray gives its workers these titles."""
    pids = RunDir.of(name).processes()
    return [pid for pid in pids if f"ray::{kind}" in Path(f"/proc/{pid}/cmdline").read_text(errors="replace")]


def free_ports(count: int = 2) -> int:
    """The first of so many, for gateways: above those of Ray's workers, below those that connections take."""
    while True:
        first = random.randrange(20_000, 32_000)
        if all(why_not_listen("127.0.0.1", first + number) is None for number in range(count)):
            return first


@contextmanager
def up(model_dir: Path, directory: Path, name: str, *flags: str) -> Iterator[UpSystem]:
    """``dualpath up`` with these flags; at the end ``dualpath down``, unless the test has done so."""
    config = directory / "cluster.toml"
    port, store = free_ports(), directory / "kv"
    text = CONFIG.format(model=model_dir, store=store, block_tokens=BLOCK_TOKENS, port=port, name=name, mbps=MBPS)
    config.write_text(text, encoding="utf-8")
    started_s = time.monotonic()
    done = dualpath("up", "--config", str(config), *flags)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield UpSystem(name, f"http://127.0.0.1:{port}", time.monotonic() - started_s)
    finally:
        if RunDir.of(name).is_there:
            ended = dualpath("down", "--cluster-name", name, "--drain-s", "1")
            assert ended.returncode == 0, ended.stdout + ended.stderr


def environment_of(pid: int) -> dict[str, str]:
    items = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(item.split("=", 1) for item in items if "=" in item)


def is_alive(pid: int) -> bool:
    """False for a process that has ended, even if its parent has not yet asked how."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
