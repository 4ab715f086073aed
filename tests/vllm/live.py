"""A service over a pair of real vLLM servers, and the questions whose answers plain vLLM has given."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from tests.vllm.servers import DTYPE, SECRET, VllmServer, environment, vllm_python

from dualpath.cluster.free_ports import free_ports
from dualpath.core.exchange import Exchanges
from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.keys import Namespace
from dualpath.core.request import Request, RequestRecord, SamplingParams
from dualpath.core.stats import EngineStats
from dualpath.protocol.node_link import LinkConfig, NodeLink
from dualpath.protocol.socket_channel import SocketChannel
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.scheduler import Scheduler
from dualpath.scheduler.service import Service
from dualpath.store.contract import BlockStore
from dualpath.store.header import object_bytes
from dualpath.store.index import BlockIndex
from dualpath.store.open import open_store
from dualpath.vllm.api_server import ApiServer
from dualpath.vllm.engine_client import VllmDecodeEngine, VllmPrefillEngine
from dualpath.vllm.settings import ConnectorSettings
from dualpath.vllm.upstream import VllmUpstream

ANSWER_TOKENS = 150  # of turn 1: so that a block fills while it is decoded
_names = count()


@dataclass(frozen=True)
class Turn:
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    digests: tuple[tuple[int, ...], ...] = ()  # [block][layer], of its whole blocks in plain vLLM's KV


def ask_oracle(model: Path, conversations: Sequence[Sequence[dict[str, Any]]]) -> list[list[Turn]]:
    """Each turn's new tokens -> its whole prompt, and plain vLLM's answer."""
    oracle = Path(__file__).with_name("oracle.py")
    asked = json.dumps({"conversations": conversations, "dtype": DTYPE})
    done = subprocess.run(
        [str(vllm_python()), str(oracle), str(model)], input=asked, env=environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"plain vLLM failed:\n{done.stderr[-4000:]}")
    (answers,) = (line for line in done.stdout.splitlines() if line.startswith("ANSWERS "))
    found = json.loads(answers.removeprefix("ANSWERS "))
    return [[_turn(turn) for turn in talk["turns"]] for talk in found]


def _turn(told: dict[str, Any]) -> Turn:
    digests = tuple(tuple(layers) for layers in told["digests"])
    return Turn(tuple(told["prompt"]), tuple(told["answer"]), digests)


def new_tokens(seed: int, num_tokens: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(0, 250) for _ in range(num_tokens)]


@dataclass
class VllmPair:
    """Two servers on one store. They live for a session of tests; services over them come and go."""

    model: Path
    folder: Path
    prefill: VllmServer = field(init=False)
    decode: VllmServer = field(init=False)
    options: dict[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for role in ("prefill", "decode"):
            settings = ConnectorSettings(
                role=role,  # type: ignore[arg-type]
                engine_id=f"{role[0]}0",
                port=free_ports(1)[0],
                store_url=f"file://{self.folder}/store",
                num_slots=128,
            )
            log = self.folder / f"{role}.log"
            server = VllmServer(role, self.model, log, settings, self.options.get(role, ()), is_faulty=True)
            setattr(self, role, server)

    @property
    def servers(self) -> tuple[VllmServer, VllmServer]:
        return self.prefill, self.decode

    def start(self) -> None:
        for server in self.servers:
            server.start()
        for server in self.servers:
            server.wait()

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


@dataclass
class Live:
    """One service, its index built from what is stored."""

    scheduler: Scheduler
    store: BlockStore
    namespace: Namespace
    index: BlockIndex
    upstream: VllmUpstream
    links: list[NodeLink]

    @property
    def service(self) -> Service:
        return self.scheduler.service

    async def ask(self, turn: Turn, name: str = "q", cache_salt: str = "") -> tuple[tuple[int, ...], RequestRecord]:
        request = self.request(turn, name, cache_salt)
        tokens = tuple([event.token_id async for event in self.service.generate(request)])
        record = self.service.record(request.request_id)
        assert record is not None
        return tokens, record

    def request(self, turn: Turn, name: str = "q", cache_salt: str = "") -> Request:
        """``name``: for ``tests.vllm.faulty_connector``."""
        sampling = SamplingParams(max_tokens=len(turn.answer), temperature=0.0, ignore_eos=True)
        return Request(RequestId(f"{name}-{next(_names)}"), turn.prompt, sampling, cache_salt)

    async def update(self, directory: Path) -> str:
        return await self.service.control.update_weights(str(directory))

    async def idle(self) -> None:
        """All releases and writes have ended, and nothing is held anywhere."""
        assert await self.service._tasks.wait(30.0)
        assert await self.scheduler.desk.tasks.wait(30.0)
        for engine_id, engine in (await self.stats()).items():
            assert engine.staging_slots_used == 0, engine_id
            assert engine.num_requests == 0, engine_id

    async def stats(self) -> dict[str, EngineStats]:
        return {engine.engine_id: engine for engine in (await self.service.stats()).engines}


class ServerChannel(SocketChannel):
    def __init__(self, server: VllmServer) -> None:
        assert server.settings is not None
        super().__init__("127.0.0.1", server.settings.port, SECRET.encode())
        self._server = server

    def end_process(self) -> None:
        self._server.kill()


async def ask_first_turns(pair: VllmPair, talks: list[list[Turn]]) -> list[list[Turn]]:
    """So that their KV is in storage."""
    async with live(pair, "split", max_retries=0) as service:
        for talk in talks:
            tokens, record = await service.ask(talk[0])
            assert tokens == talk[0].answer
            assert record.num_hit_tokens == 0
        await service.idle()
    return talks


def running(pair: VllmPair) -> Iterator[VllmPair]:
    """A fixture's."""
    try:
        pair.start()
        yield pair
    finally:
        pair.stop()


@asynccontextmanager
async def live(pair: VllmPair, path: str = "split", **config: Any) -> AsyncIterator[Live]:
    exchanges = Exchanges()
    async with AsyncExitStack() as stack:
        links, apis = list[NodeLink](), list[ApiServer]()
        for server in pair.servers:
            assert server.settings is not None
            channel = ServerChannel(server)
            node_id = NodeId(server.settings.engine_id)
            link = NodeLink(node_id, channel, LinkConfig(heartbeat_s=20.0), lambda *_: None, lambda _: None)
            await link.start()
            stack.push_async_callback(channel.close)
            stack.push_async_callback(link.close)
            links.append(link)
            apis.append(ApiServer(server.url))
            stack.push_async_callback(apis[-1].close)
        namespace = links[0].report.namespace
        assert namespace == links[1].report.namespace
        assert pair.prefill.settings is not None
        store = open_store(pair.prefill.settings.store_url, namespace, namespace.geometry)
        stack.callback(store.close)
        index = BlockIndex(object_bytes(namespace.geometry))
        index.rebuild(store)

        async def open_namespace(other: Namespace) -> None:
            if not index.knows_namespace(other.digest):
                found = open_store(str(pair.prefill.settings.store_url), other, other.geometry)  # type: ignore[union-attr]
                index.adopt(other.digest, found.list_blocks())
                found.close()

        scheduler = Scheduler(
            prefill_engines=[VllmPrefillEngine(links[0], EngineId("p0"), apis[0])],
            decode_engines=[VllmDecodeEngine(links[1], EngineId("d0"), apis[1], exchanges)],
            index=index,
            store=store,
            namespace=namespace,
            model_name="m",
            max_context_tokens=4096,
            config=replace(SchedulerConfig(path_policy=path), **config),
            open_namespace=open_namespace,
        )
        await scheduler.start([hold for link in links for hold in link.held])
        try:
            yield Live(scheduler, store, namespace, index, VllmUpstream(apis, exchanges), links)
        finally:
            await scheduler.close(5.0)
