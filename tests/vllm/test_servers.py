"""Servers that are started, watched, joined and ended: processes that are fakes, but for that they are processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.scheduler.fakes import FakePrefill, FakeStorage
from tests.scheduler.fixtures import BLOCK, make_request
from tests.vllm.fake_python import config_of, fake_python
from tests.vllm.fake_server import answer_to
from tests.vllm.pair import until

from dualpath.cli.main import main
from dualpath.cluster.remote import RemoteCluster
from dualpath.cluster.vllm.cluster import VllmCluster
from dualpath.cluster.vllm.command import arguments, devices, kv_transfer_config, server_environment
from dualpath.cluster.vllm.environment import Environment, link_package
from dualpath.cluster.vllm.plan import connector_settings, joined_places, new_places, sizes_of
from dualpath.cluster.vllm.process import ServerProcess
from dualpath.cluster.vllm.servers import JoinedServers, StartedServers
from dualpath.config import ServeConfig
from dualpath.core.errors import ConfigError, DualPathError
from dualpath.preflight.vllm import check_vllm
from dualpath.vllm.settings import read_settings

PROMPT = tuple(range(40, 40 + 4 * BLOCK + 3))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return fake_python(tmp_path, monkeypatch)


@asynccontextmanager
async def started(config: ServeConfig) -> AsyncIterator[tuple[VllmCluster, list[str]]]:
    lines: list[str] = []
    cluster = VllmCluster(config, lines.append)
    try:
        await cluster.start()
        yield cluster, lines
    finally:
        await cluster.close(5.0)


async def ask(cluster: VllmCluster, name: str) -> list[int]:
    request = make_request(name, prompt=PROMPT, max_tokens=6)
    return [event.token_id async for event in cluster.service.generate(request)]


async def test_servers_start_answer_are_started_again_and_end_with_us(python: Path) -> None:
    async with started(config_of(python)) as (cluster, lines):
        assert any("logs in" in line for line in lines)
        assert await ask(cluster, "one") == answer_to(PROMPT, 6)
        assert isinstance(cluster._servers, StartedServers)
        processes = dict(cluster._servers.processes)
        assert sorted(processes) == ["decode-0", "prefill-0"]
        first = processes["decode-0"]._process
        assert first is not None
        os.killpg(first.pid, signal.SIGKILL)
        await until(lambda: not cluster.service.ready())
        await until(cluster.service.ready)
        assert processes["decode-0"]._process is not first
        assert await ask(cluster, "two") == answer_to(PROMPT, 6)
    assert all(process.exit_code is not None for process in processes.values())
    assert sorted(path.name for path in (python.parent / "logs").glob("*.log")) == ["decode-0.log", "prefill-0.log"]


async def test_paths_are_taken_from_where_the_user_stands(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in docs/vllm.md: --vllm-python vllm-env/bin/python. What lies there is not imported."""
    monkeypatch.chdir(python.parent.parent)
    (python.parent.parent / "dualpath.py").write_text("raise ImportError('another DualPath')")
    folder = python.parent.name
    config = config_of(python, python=f"{folder}/python", log_dir=f"{folder}/logs")
    async with started(config) as (cluster, _):
        assert await ask(cluster, "one") == answer_to(PROMPT, 6)


async def test_a_server_that_cannot_be_started_again_is_tried_again(
    python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualpath.cluster.vllm.servers._AGAIN_S", (0.01,))
    lines: list[str] = []
    servers = StartedServers(config_of(python), (), lines.append)
    process = ServerProcess("p0", ["/bin/true"], {}, python.parent / "log")
    start, starts = process.start, list[int]()

    def without_memory() -> None:
        starts.append(1)
        if len(starts) == 1:
            raise OSError("no memory")
        start()

    start()
    monkeypatch.setattr(process, "start", without_memory)
    watching = asyncio.create_task(servers._watch(process))
    try:
        async with asyncio.timeout(10):
            await until(lambda: len(starts) == 3)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await process.stop(at_once=True)
    assert "p0 cannot be started again: no memory" in lines


async def test_servers_end_with_us_even_if_something_else_does_not(
    python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: RemoteCluster) -> None:
        raise OSError("the store cannot be closed")

    monkeypatch.setattr(RemoteCluster, "_close_nodes", fail)
    cluster = VllmCluster(config_of(python), print)
    assert isinstance(cluster._servers, StartedServers)
    process = cluster._servers.processes["decode-0"]
    process.start()
    with pytest.raises(OSError, match="cannot be closed"):
        await cluster._close_nodes()
    assert process.exit_code is not None


async def test_a_server_that_does_not_start_says_why_and_where_its_log_is(
    python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "broken")
    with pytest.raises(DualPathError, match=r"code 1: DualPath cannot serve this: a block of 3 tokens; .*/\w+-0.log"):
        async with started(config_of(python)):
            pass


async def test_why_a_server_ended_is_not_why_a_former_one_did(tmp_path: Path) -> None:
    """They share a log."""
    log = tmp_path / "p0.log"
    for command, reason in (
        ("echo 'DualPath cannot serve this: LoRA'; exit 3", ": DualPath cannot serve this: LoRA"),
        ("exit 3", ""),
    ):
        process = ServerProcess("p0", ["/bin/sh", "-c", command], {}, log)
        process.start()
        await process.ended()
        assert process.why_ended() == f"p0: it ended with exit code 3{reason}; its log is {log}"


def test_a_python_without_vllm(
    python: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "without")
    with pytest.raises(ConfigError, match=r"has no vllm, nixl: .* -m pip install 'vllm==.*'.* --vllm-python"):
        VllmCluster(config_of(python), print)
    for wrong, text in (("/no/such/python", "cannot be run"), ("/bin/true", "no Python that works")):
        with pytest.raises(ConfigError, match=text):
            VllmCluster(config_of(python, python=wrong), print)


async def test_servers_that_run_already_are_joined_by_what_the_command_prints(
    python: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DUALPATH_SECRET", "s" * 32)
    processes, join = [], []
    for place in new_places(config_of(python)):
        flags = ["--model", str(python.parent), "--store", f"file://{python.parent}/store", "--block-tokens", "8"]
        flags += ["--vllm-python", str(python), "--role", place.role.value, "--http-port", str(place.port)]
        assert main(["vllm", "config", *flags, "--line-port", str(place.line_port)]) == 0
        said = capsys.readouterr().out
        command = next(line for line in said.splitlines() if line.startswith(str(python)))
        found = re.search(r"--vllm-join (\S+)", said)
        assert found is not None
        join.append(found[1])
        processes.append(subprocess.Popen(["/bin/sh", "-c", f"exec {command}"]))  # noqa: ASYNC220
    try:
        async with started(config_of(python, join=join)) as (cluster, _):
            assert isinstance(cluster._servers, JoinedServers)
            assert await ask(cluster, "one") == answer_to(PROMPT, 6)
        assert all(process.poll() is None for process in processes), "they are not ours to end"
        swapped = [text.replace("prefill", "x").replace("decode", "prefill").replace("x", "decode") for text in join]
        with pytest.raises(ConfigError, match="connector, not a"):
            async with started(config_of(python, join=swapped)):
                pass
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_servers_of_one_name_cannot_be_told_apart(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALPATH_SECRET", "s" * 32)
    join = ["prefill=http://a:1", "prefill=http://b:1", "decode=http://c:1"]
    cluster = VllmCluster(config_of(python, join=join), print)
    info = FakePrefill("prefill-0", FakeStorage(), {}).info  # as both are called unless --name says otherwise
    links: Any = [
        SimpleNamespace(node_id=name, info=lambda _: info, report=SimpleNamespace(engines=(info,), namespace=None))
        for name in ("prefill-0", "prefill-1")
    ]
    cluster._add_engine(links[0], info)
    with pytest.raises(ConfigError, match=r"two servers are called prefill-0: .*--name"):
        cluster._add_engine(links[1], info)


def test_what_servers_are_told(python: Path) -> None:
    config = config_of(python)
    _, sizes = sizes_of(config)
    places = new_places(config)
    ports = {port for place in places for port in (place.port, place.line_port)}
    assert len(ports) == 4
    for place in places:
        told = connector_settings(config, place, sizes, lease_s=60.0)
        given = json.loads(kv_transfer_config(told))
        assert read_settings(given["kv_connector_extra_config"]) == told
        assert given["kv_load_failure_policy"] == "recompute"
        assert told.num_slots * BLOCK >= sizes.max_context_tokens == 400


@pytest.mark.parametrize("former", [None, "this", "another", "gone"])
def test_servers_run_this_dualpath_wherever_their_logs_are(former: str | None, tmp_path: Path) -> None:
    """Logs may go where those of an earlier run, of another DualPath, are."""
    (tmp_path / "another").mkdir()
    if former == "this":
        link_package(tmp_path / "package")
    elif former is not None:
        (tmp_path / "package").mkdir()
        (tmp_path / "package" / "dualpath").symlink_to(tmp_path / former)
    for _ in range(2):
        found = link_package(tmp_path / "package") / "dualpath"
        assert found.resolve() == ROOT / "src" / "dualpath"
    assert (tmp_path / "another").is_dir()


@pytest.mark.parametrize(
    ("named", "num_devices", "expected"),
    [
        (None, 4, ["0", "1", "2"]),
        (None, 2, ["0", "1", "0"]),
        ("4,2,7", 3, ["4", "2", "7"]),
        (" GPU-a, GPU-b,GPU-c,GPU-d", 4, ["GPU-a", "GPU-b", "GPU-c"]),
        ("MIG-a,MIG-b,MIG-c", 1, ["MIG-a", "MIG-b", "MIG-c"]),
        ("", 0, ["", "", ""]),
    ],
    ids=["none", "shared", "named", "more", "slices", "no device"],
)
def test_devices_are_dealt_out_among_the_servers(
    named: str | None, num_devices: int, expected: list[str], python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    found = Environment(python, "0.32.0", num_devices)
    told = [server_environment(config_of(python), n, 3, found, ("s", "k"), python.parent) for n in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in told] == expected


def test_ranks_of_a_server_get_devices_memory_and_threads(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each server's KV a rank keeps its share of the heads: the model has two."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    plain = config_of(python)
    one, two, four = (replace(plain, cluster=replace(plain.cluster, tensor_parallel=count)) for count in (1, 2, 4))
    geometry, sizes = sizes_of(two)
    place = new_places(two)[0]
    told = connector_settings(two, place, sizes, lease_s=None)
    kv_bytes = []
    for config, ranks in ((one, []), (two, ["--tensor-parallel-size", "2"]), (four, ["--tensor-parallel-size", "4"])):
        given = arguments(config, place, told, geometry, sizes, on_cpu=True)
        kv_bytes.append(int(given[given.index("--kv-cache-memory-bytes") + 1]))
        where = given.index("--middleware")
        assert given[where - len(ranks) : where] == ranks
    assert kv_bytes == [kv_bytes[0], kv_bytes[0] // 2, kv_bytes[0] // 2]
    few = replace(one.memory, decode_staging_bytes=2 * 400 * geometry.bytes_per_token)
    slots = [sizes_of(replace(config, memory=few))[1].decode_slots for config in (one, two, four)]
    assert slots == [slots[0], slots[0], slots[0] // 2], "four ranks have each of two heads twice"
    assert devices(2, 4, {}, 2) == ["0,1", "2,3"]
    assert devices(3, 4, {}, 2) == ["0,1", "2,3", "0,1"]
    assert devices(2, 8, {"CUDA_VISIBLE_DEVICES": "7,6,5,4"}, 2) == ["7,6", "5,4"]
    with pytest.raises(ConfigError, match="names 3 for 2 vLLM servers of 2 ranks"):
        devices(2, 8, {"CUDA_VISIBLE_DEVICES": "7,6,5"}, 2)
    with pytest.raises(ConfigError, match="--tensor-parallel 4: there are 2 CUDA devices"):
        devices(1, 2, {}, 4)
    on_cpu = Environment(python, "0.32.0", 0)
    assert server_environment(two, 0, 2, on_cpu, ("s", "k"), python.parent)["OMP_NUM_THREADS"] == "2"


def test_too_few_devices_are_said_before_any_server_starts(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=3 names 1 for 2 vLLM servers"):
        VllmCluster(config_of(python), print)
    _, found = check_vllm(config_of(python))
    assert found.state == "fail"
    assert "names 1 for 2" in found.text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prefill=http://a:1", "no decode server"),
        ("both=http://a:1", "must be prefill or decode"),
        ("prefill=ftp://a", "must be prefill or decode"),
    ],
    ids=["alone", "role", "scheme"],
)
def test_places_that_are_none(text: str, reason: str, python: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        config_of(python, join=[text])


def test_a_line_is_100_ports_further_unless_it_is_said_to_be_elsewhere(python: Path) -> None:
    join = ["prefill=http://a:8001", "decode=http://b:8002,c:9000"]
    first, second = joined_places(config_of(python, join=join))
    assert (first.line_host, first.line_port) == ("a", 8101)
    assert (second.line_host, second.line_port, second.name) == ("c", 9000, "decode-0")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--store", "memory://"], "one process's memory"),
        (["--store", "file:///tmp/x", "--engines-per-node", "2"], "must be 1"),
        (["--store", "file:///tmp/x", "--system", "oracle", "--allow-invalid-answers", "true"], "move KV"),
    ],
    ids=["memory", "engines", "oracle"],
)
def test_what_cannot_be_asked_of_vllm(
    flags: list[str], reason: str, python: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--engine", "vllm", "--model", str(python.parent), *flags]) == 2
    assert reason in capsys.readouterr().err


def test_a_check_says_which_vllm_there_is(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, found = check_vllm(config_of(python))
    assert (sizes.state, found.state) == ("ok", "ok")
    assert found.text == f"0.32.0 for {python}, no CUDA device"
    monkeypatch.setenv("FAKE_VLLM", "without")
    _, gone = check_vllm(config_of(python))
    assert gone.state == "fail"
    assert "has no vllm, nixl" in gone.text
