"""A node's actor and its vLLM server: when it is started, again and never again, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.e2e.ray_kit import environment_of, is_alive
from tests.ray.vllm_actors import NAMESPACE, NODES, FakeRay, Handle, without_ray
from tests.vllm.fake_python import config_of, fake_python

from dualpath.config import ServeConfig
from dualpath.core.errors import DualPathError
from dualpath.protocol.socket_channel import SocketChannel
from dualpath.ray.vllm_node import Joinable, Met, VllmNodeActor, _of_node

SOON_S = 60.0


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    monkeypatch.setattr("dualpath.cluster.vllm.servers._AGAIN_S", (0.01,))
    return without_ray(monkeypatch)


@pytest.fixture
def config(ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServeConfig:
    return replace(config_of(fake_python(tmp_path, monkeypatch)), nodes=NODES)


@pytest.fixture
async def handle(config: ServeConfig) -> AsyncIterator[Handle]:
    handle = Handle(config, NODES[1])
    yield handle
    await handle.actor.close()


async def met(actor: VllmNodeActor) -> Met:
    async with asyncio.timeout(SOON_S):
        while (found := await actor.meet()).server is None and found.failure is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return found


async def joinable(actor: VllmNodeActor) -> Joinable:
    server = (await met(actor)).server
    assert server is not None
    return server


async def until_serving(server: Joinable) -> None:
    """Whoever knows its secret reaches it by its control line."""
    line = SocketChannel(server.place.line_host, server.place.line_port, server.secret.encode())
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                await line.open("test")
            except DualPathError:
                await asyncio.sleep(0.05)
            else:
                break
    await line.close()


def process_of(actor: VllmNodeActor) -> int:
    assert actor._starting is not None
    (process,) = actor._starting.result().processes.values()
    assert process._process is not None
    return process._process.pid


async def test_a_server_is_started_when_its_node_is_met_and_joined_by_what_that_says(handle: Handle) -> None:
    assert handle.actor._starting is None
    server = await joinable(handle.actor)
    assert (server.place.name, server.place.host, server.ended) == ("de0", "127.0.0.1", None)
    await until_serving(server)
    assert environment_of(process_of(handle.actor))["DUALPATH_VLLM_NODE"] == f"{NAMESPACE}/de0"
    pid = process_of(handle.actor)
    await handle.actor.close()
    assert not is_alive(pid)


async def test_one_that_ends_before_it_was_ready_says_why_and_is_not_started_again(handle: Handle) -> None:
    await joinable(handle.actor)
    waiting = asyncio.create_task(handle.actor.until_ended())
    pid = process_of(handle.actor)
    os.killpg(pid, signal.SIGKILL)
    assert "de0: it ended with exit code -9" in await asyncio.wait_for(waiting, SOON_S)
    server = await joinable(handle.actor)
    assert server.ended is not None
    assert "exit code -9" in server.ended
    assert process_of(handle.actor) == pid


async def test_one_that_has_been_ready_is_started_again_while_its_scheduler_asks_for_it(handle: Handle) -> None:
    server = await joinable(handle.actor)
    await until_serving(server)
    await handle.actor.watch()
    pid = process_of(handle.actor)
    os.killpg(pid, signal.SIGKILL)
    async with asyncio.timeout(SOON_S):
        while not any("it is started again" in line for line in handle.actor._lines):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert process_of(handle.actor) == pid, "nobody wants it"
        while process_of(handle.actor) == pid:
            again = await joinable(handle.actor)
            await asyncio.sleep(0.01)
    assert again.place == server.place
    await until_serving(server)


async def test_what_a_killed_actor_has_left_is_ended_by_its_next_process(
    handle: Handle, config: ServeConfig, ray: FakeRay
) -> None:
    first = await joinable(handle.actor)
    await until_serving(first)
    pid, former = process_of(handle.actor), handle.actor
    ray.kill(handle, no_restart=False)
    other = Handle(config, NODES[0])
    await joinable(other.actor)
    assert is_alive(pid), "another node's actor"
    second = await joinable(handle.actor)
    await until_serving(second)
    assert not is_alive(pid)
    assert first.secret != second.secret
    assert is_alive(process_of(other.actor))
    await other.actor.close()
    await former.close()


async def test_an_actor_that_is_told_to_end_while_it_starts_leaves_nothing(handle: Handle) -> None:
    await handle.actor.meet()
    await handle.actor.close()
    assert handle.actor._starting is not None
    assert handle.actor._starting.cancelled()


@pytest.mark.parametrize(
    ("kind", "device", "reason"),
    [
        ("without", "cpu", r"has no vllm, nixl: .* -m pip install"),
        ("", "cuda", r"de0: its device is cuda, and vLLM of .*/python sees no CUDA device there"),
        ("cuda", "cpu", r"de0: its device is cpu, and vLLM of .*/python computes on CUDA"),
    ],
    ids=["no vllm", "no device", "a device"],
)
async def test_a_server_that_cannot_be_started_says_why_each_time_it_is_asked_for(
    kind: str, device: str, reason: str, config: ServeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", kind)
    handle = Handle(config, replace(NODES[1], device=device))
    for _ in range(2):
        failure = (await met(handle.actor)).failure
        assert failure is not None
        with pytest.raises(DualPathError, match=reason):
            raise failure.error()


def test_a_node_has_arguments_and_a_storage_nic_of_its_own(config: ServeConfig) -> None:
    config = replace(config, vllm=replace(config.vllm, args=("--enforce-eager",)))
    node = replace(NODES[0], vllm_args=("--max-num-seqs=4",), storage_nic_mbps=80.0)
    for is_paced, mbps in ((True, 80.0), (False, None)):
        own = _of_node(config, replace(node, pace_storage=is_paced))
        assert own.vllm.args == ("--enforce-eager", "--max-num-seqs=4")
        assert own.cluster.storage_nic_mbps == mbps
