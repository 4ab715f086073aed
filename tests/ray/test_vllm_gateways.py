"""Several gateways in front of vLLM servers: each has its own answers, and whoever goes takes nothing of others along.

Without Ray and vLLM: actors are objects here, their servers fakes in processes of their own.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
from tests.ray.test_vllm_node import process_of
from tests.ray.vllm_actors import NODES, Handle, without_ray
from tests.scheduler.fixtures import BLOCK, make_request
from tests.vllm.fake_python import config_of, fake_python
from tests.vllm.fake_server import answer_to, ids_of, serving_app, text_of

from dualpath.cluster.vllm.cluster import VllmCluster
from dualpath.cluster.vllm.gateway import VllmGateway
from dualpath.config import ServeConfig
from dualpath.core.errors import EngineSilentError
from dualpath.core.ids import NodeId
from dualpath.core.plan import Role
from dualpath.core.runtime import SystemRuntime
from dualpath.gateway.app import create_app
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.models.init import init_model
from dualpath.protocol import wire
from dualpath.ray.vllm_servers import RayServers
from dualpath.scheduler.desk.server import DeskServer

PROMPT = tuple(range(40, 40 + 4 * BLOCK + 3))
LONG, STEP_S = 150, 0.02  # tokens of an answer that lasts


@dataclass
class System:
    """Actors stay; schedulers and gateways come and go."""

    config: ServeConfig
    handles: dict[NodeId, Handle] = field(init=False)
    scheduler: VllmCluster = field(init=False)
    desk: DeskServer | None = None

    def __post_init__(self) -> None:
        self.handles = {NodeId(node.name): Handle(self.config, node) for node in NODES}

    def servers(self, *, starts: bool) -> RayServers:
        return RayServers(self.handles, {NodeId(node.name): Role(node.role) for node in NODES}, starts=starts)

    async def start_scheduler(self) -> None:
        servers = self.servers(starts=True)
        self.scheduler = VllmCluster(self.config, lambda _: None, servers=servers, has_gateways=True)
        await self.scheduler.start()
        self.desk = self.scheduler.desk_server(5.0)

    async def replace_scheduler(self) -> None:
        former, desk, self.desk = self.scheduler, self.desk, None
        assert desk is not None
        await desk.close()
        await former.close(0.0)
        await self.start_scheduler()

    @asynccontextmanager
    async def gateway(self, name: str) -> AsyncIterator[VllmGateway]:
        servers = self.servers(starts=False)
        gateway = VllmGateway(name, self.config, servers, ToDesk(self), lambda _: None, SystemRuntime())
        try:
            await gateway.start()
            yield gateway
        finally:
            await gateway.close(5.0)


@dataclass
class ToDesk:
    """``protocol.channel.Channel`` to the scheduler that there is."""

    system: System

    @property
    def _there(self) -> DeskServer:
        if self.system.desk is None:
            raise EngineSilentError("there is no scheduler")
        return self.system.desk

    async def open(self, session: str) -> bytes:
        return await self._there.open(session)

    async def send(self, session: str, batch: bytes) -> None:
        await self._there.send(session, batch)

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        return await self._there.poll(session, max_wait_s)

    def end_process(self) -> None:
        raise AssertionError("not a gateway's to do")


@pytest.fixture
async def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[System]:
    without_ray(monkeypatch)
    monkeypatch.setenv("FAKE_VLLM_STEP_S", str(STEP_S))
    system = System(replace(config_of(fake_python(tmp_path, monkeypatch)), nodes=NODES))
    try:
        await system.start_scheduler()
        yield system
    finally:
        if system.desk is not None:
            await system.desk.close()
        await system.scheduler.close(5.0)
        for handle in system.handles.values():
            await handle.actor.close()


async def ask(gateway: VllmGateway, name: str, max_tokens: int = 6) -> list[int]:
    request = make_request(name, prompt=PROMPT, max_tokens=max_tokens)
    return [event.token_id async for event in gateway.service.generate(request)]


async def test_all_serve_one_cluster_under_the_same_names(system: System) -> None:
    async with system.gateway("gateway-0") as one, system.gateway("gateway-1") as two:
        answers = await asyncio.gather(ask(one, "q", 20), ask(two, "q", 20))
        assert list(answers) == [answer_to(PROMPT, 20)] * 2
        assert await ask(two, "r") == answer_to(PROMPT, 6)
        record = two.service.record(make_request("r").request_id)
        assert record is not None
        assert record.num_recomputed_blocks == 4, "hits of one cluster; each fake server has a storage of its own"
        # One goes in the midst of its stream: the other's goes on.
        begun = asyncio.create_task(ask(one, "s", LONG))
        kept = asyncio.create_task(ask(two, "s", LONG))
        await asyncio.sleep(LONG * STEP_S / 2)
        begun.cancel()
        assert await kept == answer_to(PROMPT, LONG)


async def test_a_server_that_ends_is_met_again_by_all(system: System) -> None:
    async with system.gateway("gateway-0") as one, system.gateway("gateway-1") as two:
        for node in NODES:
            os.killpg(process_of(system.handles[NodeId(node.name)].actor), signal.SIGKILL)
            found = await asyncio.gather(ask(one, f"{node.name}-one", 30), ask(two, f"{node.name}-two", 30))
            assert list(found) == [answer_to(PROMPT, 30)] * 2


async def test_streams_go_on_without_a_scheduler_and_the_next_one_places_again(system: System) -> None:
    async with system.gateway("gateway-0") as gateway:
        begun, tokens = asyncio.Event(), list[int]()

        async def take() -> None:
            request = make_request("one", prompt=PROMPT, max_tokens=LONG)
            async for event in gateway.service.generate(request):
                tokens.append(event.token_id)
                begun.set()

        running = asyncio.create_task(take())
        await begun.wait()
        await system.replace_scheduler()
        assert not running.done()
        await running
        assert tokens == answer_to(PROMPT, LONG)
        assert await ask(gateway, "two") == answer_to(PROMPT, 6)


async def test_a_gateway_has_no_server_started(system: System) -> None:
    handle = Handle(system.config, NODES[0])
    servers = RayServers({NodeId("pe0"): handle}, {NodeId("pe0"): Role.PREFILL}, starts=False)
    opened = wire.decode_opened(await servers.channel(NodeId("pe0")).open("session"))
    assert (opened.incarnation, opened.failure) == ("", None), "not yet: ask again"
    assert handle.actor._starting is None
    async with system.gateway("gateway-0") as gateway:
        assert {link._config.heartbeat_s for link in gateway._links} == {system.config.vllm.heartbeat_s}


async def test_a_clients_own_words_pass_through_each(system: System, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(init_model("qwen3", tmp_path / "tokenizer"))
    said = "the quick brown fox jumps over the lazy dog. "
    body = {"model": "m", "messages": [{"role": "user", "content": said}], "max_tokens": 12}
    async with AsyncExitStack() as stack:
        for name in ("gateway-0", "gateway-1"):
            gateway = await stack.enter_async_context(system.gateway(name))
            url = await stack.enter_async_context(
                serving_app(create_app(gateway.service, tokenizer, None, upstream=gateway.upstream))
            )
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20))
            answer = (await http.post("/v1/chat/completions", json=body)).json()
            assert answer["choices"][0]["message"]["content"] == text_of(answer_to(ids_of(said), 12))
