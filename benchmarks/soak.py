"""A system of real processes under load while nodes and storage are killed with SIGKILL; every token is compared.

python benchmarks/soak.py --minutes 60 --kills 500
``dualpath up`` runs two prefill and two decode nodes, one of each with two engines, over ``rclone serve s3``. A node is
killed only while another of its role serves, so no request may be lost. Exits 1 if one is, or a token is wrong, or
something is left at the end: held memory, descriptors, processes, shared memory, a damaged block.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoModelForCausalLM

from dualpath.cluster.free_ports import free_ports
from dualpath.models.init import init_model
from dualpath.testbed.rollout_processes import find_rclone

BUCKET, CONTEXT = "blocks", 1024
KEYS = {"AWS_ACCESS_KEY_ID": "soak", "AWS_SECRET_ACCESS_KEY": "soak-secret"}
CONFIG = """\
[model]
dir = "{model}"
served_name = "m"
[store]
url = "s3://{bucket}/soak?endpoint=http://127.0.0.1:{store_port}&timeout_s=5"
block_tokens = 16
capacity_bytes = "{capacity}"
[cluster]
path = "split"
threads_per_engine = 1
[memory]
max_context_tokens = {context}
prefill_staging_bytes = "16MiB"
decode_staging_bytes = "16MiB"
decode_kv_tokens = 8192
[deadlines]
storage_read_s = 3
[gateway]
port = {port}
[ray]
name = "{name}"
[[nodes]]
name = "pe0"
role = "prefill"
engines = 2
[[nodes]]
name = "pe1"
role = "prefill"
[[nodes]]
name = "de0"
role = "decode"
engines = 2
[[nodes]]
name = "de1"
role = "decode"
"""


@dataclass
class Tally:
    """What happened; anything in ``wrong`` is one thing too many."""

    kills: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    hit_tokens: int = 0
    prompt_tokens: int = 0
    longest_s: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def text(self) -> str:
        kills = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        outcomes = ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items()))
        share = self.hit_tokens / max(self.prompt_tokens, 1)
        return (
            f"{self.kills.total()} kills ({kills}); requests: {outcomes}; hit rate {share:.1%}, "
            f"longest answer {self.longest_s:.1f} s; {len(self.wrong)} things wrong"
        )


class Storage:
    """``rclone serve s3`` over one directory, killed and started again."""

    def __init__(self, root: Path) -> None:
        self.port, self._root = free_ports(1)[0], root
        (root / BUCKET).mkdir(parents=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_up(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        command = [find_rclone(), "serve", "s3", "--config", os.devnull, "--addr", f"127.0.0.1:{self.port}"]
        command += ["--auth-key", ",".join(KEYS.values()), str(self._root)]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Agents:
    """Conversations without end, some with an opening that all share; every answer is compared with transformers'."""

    def __init__(self, url: str, model_dir: Path, tally: Tally, seed: int) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        self._http = httpx.AsyncClient(base_url=url, timeout=180, limits=httpx.Limits(max_connections=200))
        self._tally, self._seed = tally, seed

    async def converse(self, number: int, until_s: float) -> None:
        source = random.Random(f"{self._seed} {number}")
        prompt: list[int] = []
        while time.monotonic() < until_s:
            if len(prompt) > CONTEXT - 200 or not prompt:
                prompt = [32 + i % 90 for i in range(source.choice([0, 0, 160]))]
            prompt = prompt + [source.randrange(32, 127) for _ in range(source.choice([1, 15, 16, 17, 40, 90]))]
            num_tokens = source.choice([1, 2, 8, 16, 17, 40])
            truth = await asyncio.to_thread(self._truth, prompt, num_tokens)
            await self._ask(prompt, truth, source)
            prompt = prompt + truth
            await asyncio.sleep(source.expovariate(4.0))

    async def close(self) -> None:
        await self._http.aclose()

    def _truth(self, prompt: list[int], num_tokens: int) -> list[int]:
        tokens, ids, past = list[int](), torch.tensor([prompt]), None
        with torch.inference_mode():
            for _ in range(num_tokens):
                output = self._model(input_ids=ids, past_key_values=past, use_cache=True)
                past, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
                tokens.append(int(ids))
        return tokens

    async def _ask(self, prompt: list[int], truth: list[int], source: random.Random) -> None:
        body = {"model": "m", "prompt": prompt, "max_tokens": len(truth), "temperature": 0, "ignore_eos": True}
        body["return_token_ids"] = True
        start_s, patience_s = time.monotonic(), source.choice([0.5 * source.random()] + [170.0] * 11)
        try:
            async with asyncio.timeout(patience_s):
                tokens = await (self._stream(body) if source.random() < 0.5 else self._whole(body))
        except TimeoutError:
            if patience_s > 1.0:
                self._tally.wrong.append(f"no answer in {patience_s:g} s")
            self._tally.outcomes["left by the client"] += 1
            return
        except Exception as error:
            self._tally.wrong.append(f"lost: {error!r}"[:500])
            return
        self._tally.longest_s = max(self._tally.longest_s, time.monotonic() - start_s)
        self._tally.outcomes["right" if tokens == truth else "wrong"] += 1
        if tokens != truth:
            self._tally.wrong.append(f"wrong tokens: {prompt} gave {tokens}, not {truth}")

    async def _whole(self, body: dict[str, Any]) -> list[int]:
        answer = await self._http.post("/v1/completions", json=body)
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code} {answer.text}")
        found = answer.json()
        self._tally.prompt_tokens += found["usage"]["prompt_tokens"]
        self._tally.hit_tokens += found["usage"]["prompt_tokens_details"]["cached_tokens"]
        tokens: list[int] = found["choices"][0]["token_ids"]
        return tokens

    async def _stream(self, body: dict[str, Any]) -> list[int]:
        tokens: list[int] = []
        async with self._http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code} {(await answer.aread()).decode()}")
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        raise RuntimeError(line)
                    tokens += [token for choice in chunk["choices"] for token in choice["token_ids"] or ()]
        return tokens


class Killer:
    """Kills nodes and storage in turn, as often as wanted, and never the last node of a role."""

    def __init__(self, url: str, storage: Storage, tally: Tally, seed: int) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=30)
        self._storage, self._tally = storage, tally
        self._source = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, num_kills: int, until_s: float) -> None:
        while (left := num_kills - self._tally.kills.total()) > 0 and time.monotonic() < until_s:
            pause_s = (until_s - time.monotonic()) / left
            await asyncio.sleep(self._source.uniform(0.3, 1.7) * pause_s)
            try:
                victims = await self.victims()
            except httpx.HTTPError as error:
                self._tally.wrong.append(f"no word from the gateway: {error!r}")
                continue
            if victims and self._source.random() < 0.75:
                name, pid = self._source.choice(victims)
                os.kill(pid, signal.SIGKILL)
                self._tally.kills[name] += 1
            elif self._storage.is_up:
                self._tally.kills["storage"] += 1
                self._storage.kill()
                task = asyncio.create_task(self._start_storage(self._source.uniform(0, 4)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def victims(self) -> list[tuple[str, int]]:
        """Name and process of every node that serves beside another one of its role."""
        nodes = {node["node_id"]: node["pid"] for node in await self.serving()}
        roles = Counter(name[:2] for name in nodes)
        return [(name, pid) for name, pid in sorted(nodes.items()) if roles[name[:2]] > 1]

    async def serving(self) -> list[dict[str, Any]]:
        stats = (await self._http.get("/v1/dualpath/stats")).json()
        serving = {engine["node_id"] for engine in stats["engines"]}
        return [node for node in stats["nodes"] if node["is_up"] and node["node_id"] in serving]

    async def held(self) -> list[str]:
        """What engines still hold, once all requests are over."""
        found: list[str] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60):
                while True:
                    engines = (await self._http.get("/v1/dualpath/stats")).json()["engines"]
                    names = ("num_requests", "staging_slots_used", "device_kv_used_bytes", "transfers_lingering")
                    found = [f"{e['engine_id']}: {name} {e[name]}" for e in engines for name in names if e.get(name)]
                    if not found:
                        break
                    await asyncio.sleep(0.5)
        return found

    async def all_up(self) -> None:
        async with asyncio.timeout(240):
            while len(await self.serving()) < 4:  # noqa: ASYNC110  (another process)
                await asyncio.sleep(0.5)

    async def close(self) -> None:
        await asyncio.gather(*self._tasks)
        await self._http.aclose()

    async def _start_storage(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        self._storage.start()


@dataclass(frozen=True)
class Use:
    """Of one process. ``num_descriptors`` and ``rss_bytes`` grow where something leaks."""

    num_descriptors: int
    rss_bytes: int

    @classmethod
    def of(cls, pid: int) -> Use:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(len(os.listdir(f"/proc/{pid}/fd")), pages * os.sysconf("SC_PAGE_SIZE"))


def gateway_pid(name: str) -> int:
    """The actor's process, by the title that Ray gives it, among those of this system."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                b"GatewayActor" in (entry / "cmdline").read_bytes()
                and name.encode() in (entry / "environ").read_bytes()
            ):
                return int(entry.name)
    raise RuntimeError("the gateway's process is not there")


def dualpath(*arguments: str) -> str:
    command = [sys.executable, "-m", "dualpath", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout


def of_system(name: str) -> list[int]:
    """Processes that have the system's mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if f"/{name}\0".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


async def soak(url: str, model_dir: Path, name: str, storage: Storage, options: argparse.Namespace) -> Tally:
    tally, start_s = Tally(), time.monotonic()
    until_s = start_s + 60 * options.minutes
    agents, killer = Agents(url, model_dir, tally, options.seed), Killer(url, storage, tally, options.seed)

    async def report() -> None:
        while True:
            await asyncio.sleep(60)
            use = Use.of(gateway_pid(name))
            print(
                f"{(time.monotonic() - start_s) / 60:.0f} min: {tally.text()}; gateway {use.num_descriptors} "
                f"descriptors, {use.rss_bytes / 2**20:.0f} MiB",
                flush=True,
            )
            print("".join(f"  {line}\n" for line in tally.wrong[:3]), end="", flush=True)

    await killer.all_up()
    reporting = asyncio.create_task(report())
    try:
        await asyncio.gather(
            killer.run(options.kills, until_s), *(agents.converse(number, until_s) for number in range(options.agents))
        )
        await killer.all_up()
        await agents.converse(options.agents, time.monotonic() + 10)
        tally.wrong += await killer.held()
    finally:
        reporting.cancel()
        await agents.close()
        await killer.close()
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--agents", type=int, default=6)
    parser.add_argument("--capacity", default="64MiB", help="of the store, so that blocks are evicted (default 64MiB)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= KEYS
    name, shared_before = f"soak{os.getpid()}", set(os.listdir("/dev/shm"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        storage, model_dir, port = (
            Storage(folder / "s3"),
            init_model("llama", folder / "model", layers=2),
            free_ports(1)[0],
        )
        storage.start()
        config = folder / "cluster.toml"
        values = {"model": model_dir, "bucket": BUCKET, "store_port": storage.port, "port": port, "name": name}
        config.write_text(CONFIG.format(**values, context=CONTEXT, capacity=options.capacity))
        try:
            print(dualpath("up", "--config", str(config)), flush=True)
            tally = asyncio.run(soak(f"http://127.0.0.1:{port}", model_dir, name, storage, options))
            print(dualpath("down", "--cluster-name", name))
            tally.wrong += [f"process {pid} is left" for pid in of_system(name)]
            tally.wrong += [f"/dev/shm/{left} is left" for left in set(os.listdir("/dev/shm")) - shared_before]
            store = f"s3://{BUCKET}/soak?endpoint=http://127.0.0.1:{storage.port}"
            print(dualpath("store", "verify", store))
        finally:
            with contextlib.suppress(Exception):
                dualpath("down", "--cluster-name", name)
            storage.kill()
    print(tally.text())
    print("\n".join(tally.wrong[:20]))
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
