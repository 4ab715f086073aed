"""A turn without hits: DualPath on vLLM against vLLM's own NixlConnector between the same two servers, turn about.

Nothing is loaded here, so all that DualPath adds is cost: placing, the gateway, digests, and the blocks that it stores.
Both have a prefill and a decode server of one thread on this machine's cores; the four live side by side, and requests
go to one system, then to the other, with prompts that nobody has seen. NixlConnector has no gateway: this process asks
its prefill server, then its decode server, as vLLM's own example of a proxy does. Its servers are stopped (SIGSTOP)
while DualPath is asked: they are busy without a request, too.

    OMP_NUM_THREADS=1 python benchmarks/vllm_overhead.py --model DIR --vllm-python .venv-vllm/bin/python

vLLM wants the package ``nixl`` for its connector: ``pip install --no-deps nixl==1.5.1``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from dualpath.bench.server import running_server, store_url
from dualpath.cluster.free_ports import free_ports

START_S = 600.0
NAME = "m"


@contextlib.asynccontextmanager
async def nixl_server(options: argparse.Namespace, log: Path) -> AsyncIterator[tuple[str, int]]:
    """Plain vLLM with its own connector: its URL, and the process group."""
    port, side_port = free_ports(2)
    transfer: dict[str, Any] = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}
    transfer["kv_connector_extra_config"] = {"num_threads": options.nixl_threads}
    words = [str(options.vllm_python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(options.model)]
    words += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port), "--dtype", options.dtype]
    words += ["--max-model-len", str(options.context), "--block-size", str(options.block_tokens), *options.vllm_arg]
    words += ["--kv-transfer-config", json.dumps(transfer)]
    loopback = {"VLLM_HOST_IP": "127.0.0.1", "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo", "HF_HUB_OFFLINE": "1"}
    threads = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
    side = {"VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": str(side_port)}
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *words, stdout=out, stderr=out, env=dict(os.environ, **loopback, **threads, **side), start_new_session=True
        )
    try:
        await _ready(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _ready(url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    end_s = time.monotonic() + START_S
    async with httpx.AsyncClient(timeout=5) as client:
        while time.monotonic() < end_s and process.returncode is None:
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(f"{url}/health")).status_code == 200:
                    return
            await asyncio.sleep(0.5)
    raise SystemExit(f"vLLM does not serve:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


async def ask(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> tuple[float, float]:
    """Seconds from here to the first token, and from there to the end."""
    start_s, first_s = time.perf_counter(), None
    async with client.stream("POST", f"{url}/v1/completions", json=body | {"stream": True}) as response:
        if response.status_code != 200:
            raise SystemExit((await response.aread()).decode())
        async for line in response.aiter_lines():
            if first_s is None and line.startswith("data: {"):
                first_s = time.perf_counter()
    assert first_s is not None
    return first_s - start_s, time.perf_counter() - first_s


async def ask_nixl(client: httpx.AsyncClient, urls: tuple[str, str], body: dict[str, Any]) -> tuple[float, float]:
    start_s = time.perf_counter()
    decides = {"do_remote_decode": True, "do_remote_prefill": False}
    remote = dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port"))
    prefill = body | {"max_tokens": 1, "kv_transfer_params": decides | remote}
    answer = await client.post(f"{urls[0]}/v1/completions", json=prefill)
    if answer.status_code != 200:
        raise SystemExit(answer.text)
    before_s = time.perf_counter() - start_s
    told = {"kv_transfer_params": answer.json()["kv_transfer_params"]}
    first_s, rest_s = await ask(client, urls[1], body | told)
    return before_s + first_s, rest_s


async def measure(options: argparse.Namespace, scratch: Path) -> None:
    dice = random.Random(0)
    vllm = ["--engine", "vllm", "--vllm-python", str(options.vllm_python), "--model", str(options.model)]
    vllm += ["--served-model-name", NAME, "--dtype", options.dtype, "--block-tokens", str(options.block_tokens)]
    vllm += ["--max-context-tokens", str(options.context), "--prefill", "1", "--decode", "1", "--threads-per-engine"]
    vllm += ["1", "--store", store_url(scratch / "kv"), *(f"--vllm-arg={each}" for each in options.vllm_arg)]
    async with contextlib.AsyncExitStack() as stack:
        ours = await stack.enter_async_context(running_server(vllm))
        one, prefill_pid = await stack.enter_async_context(nixl_server(options, scratch / "prefill.log"))
        two, decode_pid = await stack.enter_async_context(nixl_server(options, scratch / "decode.log"))
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=600))
        times: dict[str, list[tuple[float, float]]] = {"NixlConnector": [], "DualPath": []}
        for turn in range(options.rounds + 1):  # the first warms up
            for name in list(times)[:: 1 if turn % 2 else -1]:
                prompt = [dice.randrange(100, options.vocab) for _ in range(options.prompt)]
                body = {"model": NAME, "prompt": prompt, "max_tokens": options.answer, "temperature": 0.0}
                body["ignore_eos"] = True
                for pid in (prefill_pid, decode_pid):
                    os.killpg(pid, signal.SIGSTOP if name == "DualPath" else signal.SIGCONT)
                found = await (ask(client, ours, body) if name == "DualPath" else ask_nixl(client, (one, two), body))
                if turn:
                    times[name].append(found)
    for name, each in times.items():
        first, rest = (statistics.median(column) for column in zip(*each, strict=True))
        print(f"{name:14} first token {first:7.3f} s, the other {options.answer - 1} {rest:7.3f} s (medians)")
    pairs = list(zip(times["DualPath"], times["NixlConnector"], strict=True))
    for what, of in (("first token", lambda t: t[0]), ("the rest", lambda t: t[1]), ("whole turn", sum)):
        ratios = sorted(of(a) / of(b) for a, b in pairs)
        sums = sum(of(a) for a, _ in pairs) / sum(of(b) for _, b in pairs)
        print(
            f"{what:12} {statistics.median(ratios):.3f}x in the median of {len(pairs)} pairs "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f}), {sums:.3f}x in sum"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vllm-python", type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--prompt", type=int, default=1024, help="tokens")
    parser.add_argument("--answer", type=int, default=64, help="tokens")
    parser.add_argument("--context", type=int, default=2048, help="tokens, at most")
    parser.add_argument("--block-tokens", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=250, help="token ids are below")
    parser.add_argument("--nixl-threads", type=int, default=0, help="of an agent of NixlConnector; vLLM's own 4 spin")
    parser.add_argument("--vllm-arg", action="append", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(measure(options, Path(scratch)))


if __name__ == "__main__":
    main()
