"""A system of vLLM nodes: what Ray is asked for, what is refused, and a scheduler over the actors' servers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tests.ray.test_vllm_node import process_of
from tests.ray.vllm_actors import NODES, ActorDiedError, ActorUnavailableError, FakeRay, Handle, RayError, without_ray
from tests.scheduler.fixtures import BLOCK, make_request
from tests.vllm.fake_python import config_of, fake_python
from tests.vllm.fake_server import answer_to
from tests.vllm.pair import until

from dualpath.cli.main import main
from dualpath.cluster.vllm.cluster import VllmCluster
from dualpath.cluster.vllm.plan import ServerPlace
from dualpath.config import ServeConfig, load_config
from dualpath.core.errors import DualPathError, EngineGoneError
from dualpath.core.ids import NodeId
from dualpath.core.plan import Role
from dualpath.preflight.vllm import check_vllm
from dualpath.protocol import wire
from dualpath.protocol.socket_channel import NodeServer
from dualpath.ray import actors
from dualpath.ray.kuberay import PodOptions, render_kuberay
from dualpath.ray.system import _with_logs, with_absolute_paths
from dualpath.ray.vllm_node import Joinable, Met, VllmNodeActor
from dualpath.ray.vllm_servers import RayServerChannel, RayServers
from dualpath.vllm.api_server import ApiServer

PROMPT = tuple(range(40, 40 + 4 * BLOCK + 3))
FILE = """\
[model]
dir = "{model}"
[store]
url = "{store}"
block_tokens = 8
[cluster]
engine = "vllm"
{cluster}
[vllm]
python = "{model}/python"
args = ["--enforce-eager"]
{vllm}
[ray]
name = "test-vllm-nodes"
{ray}
[[nodes]]
name = "pe0"
role = "prefill"
{node}
[[nodes]]
name = "de0"
role = "decode"
"""


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    return without_ray(monkeypatch)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServeConfig:
    return replace(config_of(fake_python(tmp_path, monkeypatch)), nodes=NODES)


@asynccontextmanager
async def started(config: ServeConfig) -> AsyncIterator[tuple[VllmCluster, dict[str, Handle], list[str]]]:
    handles, lines = {node.name: Handle(config, node) for node in NODES}, list[str]()
    by_id = {NodeId(name): handle for name, handle in handles.items()}
    servers = RayServers(by_id, {NodeId(node.name): Role(node.role) for node in NODES})
    cluster = VllmCluster(config, lines.append, servers=servers)
    try:
        await cluster.start()
        yield cluster, handles, lines
    finally:
        await cluster.close(5.0)
        for handle in handles.values():
            await handle.actor.close()


async def ask(cluster: VllmCluster, name: str) -> list[int]:
    request = make_request(name, prompt=PROMPT, max_tokens=6)
    return [event.token_id async for event in cluster.service.generate(request)]


async def test_requests_are_served_while_servers_and_actors_come_and_go(ray: FakeRay, config: ServeConfig) -> None:
    async with started(config) as (cluster, handles, lines):
        assert any(line.startswith("starting vLLM 0.32.0 on a CPU") for line in lines)
        assert {node.node_id for node in cluster._describe_nodes()} == {"pe0", "de0"}
        assert await ask(cluster, "one") == answer_to(PROMPT, 6)
        os.killpg(process_of(handles["de0"].actor), signal.SIGKILL)
        await until(lambda: not cluster.service.ready())
        await until(cluster.service.ready)
        assert await ask(cluster, "two") == answer_to(PROMPT, 6)
        former, url = handles["pe0"].actor, cluster._servers.apis[NodeId("pe0")].url
        ray.kill(handles["pe0"], no_restart=False)
        assert await ask(cluster, "three") == answer_to(PROMPT, 6), "its server has not noticed"
        os.killpg(process_of(former), signal.SIGKILL)
        await until(lambda: cluster._servers.apis[NodeId("pe0")].url != url)
        await until(cluster.service.ready)
        assert await ask(cluster, "four") == answer_to(PROMPT, 6)
        await former.close()


async def test_a_start_fails_with_the_reason_of_the_server_that_cannot(
    ray: FakeRay, config: ServeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, reason in (("broken", r"code 1: DualPath cannot serve this: a block of 3"), ("without", "has no vllm")):
        monkeypatch.setenv("FAKE_VLLM", kind)
        with pytest.raises(DualPathError, match=reason):
            async with started(config):
                pass


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ActorDiedError("it is dead\nmore"), EngineGoneError),
        (ActorUnavailableError("the actor is restarting"), EngineGoneError),
        (ActorUnavailableError("no answer"), DualPathError),
        (RayError("x"), DualPathError),
    ],
)
async def test_what_ray_says_of_an_actor_is_what_its_channel_raises(
    error: Exception, kind: type[Exception], ray: FakeRay
) -> None:
    class Lost:
        def __getattr__(self, name: str) -> Any:
            return self

        def remote(self) -> Any:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            future.set_exception(error)
            return future

    with pytest.raises(DualPathError, match=str(error).splitlines()[0]) as raised:
        await RayServerChannel(Lost(), ApiServer("")).open("s")
    assert type(raised.value) is kind


async def test_a_session_waits_for_an_actor_that_has_not_started_its_server(ray: FakeRay) -> None:
    class Starting:
        def __getattr__(self, name: str) -> Any:
            return self

        async def remote(self) -> Met:
            return Met(("pe0: starting",))

    opened = wire.decode_opened(await RayServerChannel(Starting(), ApiServer("")).open("s"))
    assert (opened.progress, opened.report, opened.failure) == (("pe0: starting",), None, None)


async def test_a_question_to_a_silent_server_ends_with_its_process(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What listens still takes connections."""
    is_asked, killed = asyncio.Event(), list[Any]()

    class Silent:
        async def open(self, session: str) -> bytes:
            is_asked.set()
            await asyncio.Event().wait()
            raise AssertionError

        async def meet(self) -> Met:
            return Met(server=Joinable(place, "s" * 32, "k", None))

    server = NodeServer(Silent(), b"s" * 32)  # type: ignore[arg-type]  # of which it asks nothing else
    place = ServerPlace("pe0", Role.PREFILL, "http://127.0.0.1:1", "127.0.0.1", await server.start("127.0.0.1", 0))
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: killed.append(actor))
    actor = SimpleNamespace(meet=SimpleNamespace(remote=Silent().meet))
    channel = RayServerChannel(actor, ApiServer(""))
    opening = asyncio.create_task(channel.open("s"))
    await asyncio.wait_for(is_asked.wait(), 10)
    channel.end_process()
    with pytest.raises(DualPathError, match="the connection to"):
        await asyncio.wait_for(opening, 10)
    assert killed == [actor]
    await server.end()


@pytest.mark.parametrize(
    ("device", "has_gpu", "num_gpus"), [("cpu", 1, None), ("cuda", 0, 1), ("auto", 8, 1), ("auto", 0, None)]
)
def test_ray_is_asked_for_an_actor_that_has_a_device_of_its_own(
    device: str, has_gpu: int, num_gpus: int | None, config: ServeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, dict[str, Any], tuple[Any, ...]]] = []

    class Actor:
        def __init__(self, kind: type) -> None:
            self._kind = kind

        def options(self, **options: Any) -> Actor:
            self._options = options
            return self

        def remote(self, *arguments: Any) -> None:
            asked.append((self._kind, self._options, arguments))

    class Ray:
        remote = Actor

        def cluster_resources(self) -> dict[str, float]:
            return {"GPU": has_gpu} if has_gpu else {}

    monkeypatch.setattr(actors, "import_ray", Ray)
    node = replace(NODES[0], device=device, resource="rack1", env=("UCX_TLS=tcp",))
    actors.start_node(config, node, "ns-1")
    ((kind, options, arguments),) = asked
    assert (kind, arguments) == (VllmNodeActor, (config, node, "ns-1"))
    assert (options["name"], options["resources"], options.get("num_gpus")) == ("node-pe0", {"rack1": 1}, num_gpus)
    assert options["max_restarts"] == -1
    assert options["runtime_env"]["env_vars"]["UCX_TLS"] == "tcp"


def write(folder: Path, store: str = "", **parts: str) -> Path:
    file = folder / "cluster.toml"
    given = {"cluster": "", "vllm": "", "ray": "", "node": ""} | parts
    file.write_text(FILE.format(model=folder, store=store or folder / "store", **given), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"node": "engines = 2"}, r"[nodes] engines: pe0 has 2; a vLLM server is a node of its own"),
        ({"vllm": 'join = ["prefill=http://a:1", "decode=http://b:1"]'}, "[[nodes]] with --vllm-join"),
        ({"cluster": 'tensor_parallel_listen = "a:1"'}, "a vLLM server starts all its ranks itself, on one host"),
        ({"node": 'vllm_args = ["--tensor_parallel_size=2"]'}, "use --tensor-parallel, [cluster] tensor_parallel in"),
        ({"node": 'vllm_args = ["-tp=2"]'}, "-tp=2 of a vLLM server: use --tensor-parallel"),
        ({"node": 'vllm_args = ["--tensor-parallel-size", "2"]'}, "--tensor-parallel-size of a vLLM server: use"),
        ({"cluster": 'system = "oracle"\nallow_invalid_answers = true'}, "vLLM servers move KV"),
        ({"store": "memory://"}, "one process's memory"),
        ({"node": "vllm_args = [1]"}, "vllm_args: must be"),
    ],
)
@pytest.mark.parametrize("verb", ["up", "serve"])
def test_what_is_refused_before_anything_starts(
    verb: str, parts: dict[str, str], reason: str, config: ServeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert config.vllm.python is not None
    file = write(config.vllm.python.parent, **parts)
    assert main([verb, "--config", str(file)]) == 2
    assert reason in capsys.readouterr().err


def test_a_dry_run_shows_what_would_be_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, node='vllm_args = ["--max-num-seqs=4"]')
    assert main(["up", "--config", str(file), "--vllm-arg=--seed=1", "--dry-run"]) == 0
    shown = tmp_path / "shown.toml"
    shown.write_text(capsys.readouterr().out)
    found = load_config(ServeConfig, shown)
    assert (found.cluster.engine, found.vllm.args) == ("vllm", ("--seed=1",))
    assert [node.vllm_args for node in found.nodes] == [("--max-num-seqs=4",), ()]


def test_actors_get_paths_that_hold_wherever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = config_of(tmp_path / "python", python="env/bin/python", log_dir="logs")
    config = with_absolute_paths(given)
    assert (config.vllm.python, config.vllm.log_dir) == (tmp_path / "env/bin/python", tmp_path / "logs")
    assert _with_logs(config, "ns-1") == (config, f"{tmp_path}/logs")
    named = with_absolute_paths(replace(given, vllm=replace(given.vllm, python=Path("python3"), log_dir=None)))
    assert named.vllm.python == Path("python3"), "one on PATH"
    logs = _with_logs(named, "ns-1")[0].vllm.log_dir
    assert logs is not None
    assert logs.name == "dualpath-vllm-ns-1"
    builtin = replace(config, cluster=replace(config.cluster, engine="builtin"))
    assert _with_logs(builtin, "ns-1") == (builtin, None)


def test_a_check_looks_at_the_servers_of_its_host(config: ServeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert [line.state for line in check_vllm(config, NODES[:1])] == ["ok", "ok"]
    _, found = check_vllm(config, NODES)
    assert found.state == "fail"
    assert "CUDA_VISIBLE_DEVICES=3 names 1 for 2" in found.text
    assert not list(check_vllm(config, [replace(NODES[0], role="gateway")]))


def test_a_manifest_asks_for_a_device_of_each_node_and_says_what_the_image_needs(config: ServeConfig) -> None:
    nodes = tuple(replace(node, device="cuda") for node in NODES)
    text = render_kuberay(replace(config, nodes=nodes), PodOptions("i", "c"), "cluster.toml")
    assert f"# The image also needs vLLM, for {config.vllm.python} (docs/vllm.md).\n" in text
    groups = yaml.safe_load(text)["spec"]["workerGroupSpecs"]
    amounts = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups]
    assert [amount["nvidia.com/gpu"] for amount in amounts] == ["1", "1"]
