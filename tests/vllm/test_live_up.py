"""``dualpath up`` with real vLLM servers on a Ray of its own, behind two gateways: hits, deaths, nothing left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.ray_kit import (
    UpSystem,
    actors_of,
    dualpath,
    environment_of,
    free_ports,
    is_alive,
    text_of,
    until_healthy,
)
from tests.vllm.live import new_tokens
from tests.vllm.servers import vllm_python

from dualpath.ray.run_dir import RunDir

pytestmark = [pytest.mark.vllm, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

NAME = "test-vllm-up"
START_S = 800.0
BLOCK, NUM_TOKENS = 128, 40
CONFIG = """\
[model]
dir = "{model}"
served_name = "tiny"
dtype = "float32"
[store]
url = "file://{folder}/kv"
block_tokens = 128
[cluster]
engine = "vllm"
threads_per_engine = 1
[memory]
max_context_tokens = 4096
[vllm]
python = "{python}"
args = ["--enforce-eager", "--max-num-seqs=8"]
log_dir = "{folder}/logs"
start_s = {start_s}
[gateway]
port = {port}
[ray]
name = "{name}"
gateways = 2
[[nodes]]
name = "pe0"
role = "prefill"
vllm_args = ["--max-num-batched-tokens=512"]
[[nodes]]
name = "de0"
role = "decode"
env = ["DUALPATH_TEST_MARK=de0"]
"""


@pytest.fixture
def system(vllm_model: Path, tmp_path: Path) -> Iterator[UpSystem]:
    file, port = tmp_path / "cluster.toml", free_ports()
    fields = {"model": vllm_model, "folder": tmp_path, "python": vllm_python(), "start_s": START_S, "port": port}
    file.write_text(CONFIG.format(name=NAME, **fields), encoding="utf-8")
    done = dualpath("up", "--config", str(file), limit_s=START_S + 120)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield UpSystem(NAME, f"http://127.0.0.1:{port}", 0.0)
    finally:
        if RunDir.of(NAME).is_there:
            assert dualpath("down", "--cluster-name", NAME, "--drain-s", "1").returncode == 0


async def ask(system: UpSystem, prompt: list[int], num_hit_blocks: int) -> str:
    answer = await system.complete(prompt, NUM_TOKENS)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == num_hit_blocks * BLOCK
    text: str = answer["choices"][0]["text"]
    return text


async def test_servers_are_placed_hit_come_back_and_end(system: UpSystem, tmp_path: Path) -> None:
    first = new_tokens(1, 700)
    one, two = (UpSystem(NAME, gateway["url"], 0.0) for gateway in system.status()["gateways"])
    await ask(one, first, 0)
    second = first + new_tokens(2, 200)
    text = await ask(two, second, 5)  # the answer that vLLM gave is not in this prompt
    longer = (await one.complete(second, 400))["choices"][0]["text"]
    begun = [asyncio.Event(), asyncio.Event()]
    streams = [gateway.stream(second, 400) for gateway in (one, two)]
    running = [asyncio.create_task(text_of(stream, event)) for stream, event in zip(streams, begun, strict=True)]
    for event in begun:
        await event.wait()
    (pid,) = actors_of(NAME, "SchedulerFront")
    os.kill(pid, signal.SIGKILL)
    assert [await each for each in running] == [longer, longer]
    assert await ask(one, second, 7) == text
    assert actors_of(NAME, "SchedulerFront") != [pid]
    pid = (await system.node("de0"))["pid"]
    assert environment_of(os.getsid(pid))["DUALPATH_TEST_MARK"] == "de0"
    os.kill(pid, signal.SIGKILL)
    await system.until("de0", is_up=False)
    await system.until("de0", is_up=True, deadline_s=START_S)
    await system.serving("de0", START_S)
    await until_healthy(system, START_S)
    assert (await system.node("de0"))["pid"] != pid
    assert await ask(system, second, 7) == text
    await system.nothing_held()

    status = system.status()
    assert status["vllm_logs"] == str(tmp_path / "logs")
    assert {path.name for path in (tmp_path / "logs").glob("*.log")} == {"pe0.log", "de0.log"}
    processes = RunDir.of(NAME).processes()
    assert {node["pid"] for node in status["nodes"]} <= set(processes)
    assert dualpath("down", "--cluster-name", NAME, "--drain-s", "1").returncode == 0
    assert not [pid for pid in processes if is_alive(pid)]
    assert not RunDir.of(NAME).is_there
