"""Scheduler, links, nodes and both halves of the connector under seeded faults on virtual time: never a wrong token."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.protocol.line import Line
from tests.vllm.nodes import model_dir
from tests.vllm.virtual_model import BLOCK, CONTENT, LAYERS, digests, next_token
from tests.vllm.virtual_vllm import BLOCKS, VirtualVllm

from dualpath.core.errors import DualPathError, WeightsError
from dualpath.core.exchange import Exchanges
from dualpath.core.ids import EngineId, NodeId, PeerId, RequestId, peer_id
from dualpath.core.keys import Namespace, chain_keys, root_key
from dualpath.core.pause import PauseMode
from dualpath.core.plan import Role
from dualpath.core.request import Request, SamplingParams
from dualpath.protocol.client import stub
from dualpath.protocol.host import EngineServer, Served
from dualpath.protocol.node_link import LinkConfig, NodeLink
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.scheduler import Scheduler
from dualpath.store.header import object_bytes, parse_header
from dualpath.store.index import BlockIndex
from dualpath.store.memory import MemoryStore, forget
from dualpath.store.open import open_store
from dualpath.testing.faulty_store import FaultyIo
from dualpath.testing.loop import VirtualLoop
from dualpath.testing.runtime import VirtualRuntime
from dualpath.traffic.contract import Op
from dualpath.traffic.fake_transport import FakeFabric, Fate
from dualpath.traffic.manager import TrafficManager
from dualpath.traffic.storage_nic import StorageNic
from dualpath.vllm.engine_client import VllmDecodeEngine, VllmPrefillEngine
from dualpath.vllm.line import DecodeNodeLine, PrefillNodeLine
from dualpath.vllm.scheduler_half import SchedulerHalf
from dualpath.vllm.settings import ConnectorSettings
from dualpath.vllm.worker.half import DecodeWorkerHalf, PrefillWorkerHalf
from dualpath.vllm.worker.kv_region import find_kv
from dualpath.vllm.worker.parts import NodeParts, WholeBlocks
from dualpath.vllm.worker.ranked import RankedPrefill
from dualpath.vllm.worker.ranked_decode import DecodeRankLine, RankedDecode
from dualpath.vllm.worker.staged_decode import StagedDecode
from dualpath.vllm.worker.staged_prefill import StagedPrefill
from dualpath.vllm.worker.weights import NodeWeights

pytest.importorskip("greenlet")
NUM_SEEDS = 6
MAX_TOKENS = 6 * BLOCK
_names = itertools.count()


class World:
    """One prefill and one decode server, their scheduler, and clients that ask, listen and give up."""

    def __init__(self, seed: int, loop: VirtualLoop, weights: Sequence[Path], num_ranks: int = 1) -> None:
        """``weights``: model directories, the start's first. ``num_ranks``: of each server."""
        self.weights, self.num_updates, self.num_mixed = weights, 0, 0
        self.chance = random.Random(f"world {seed}")
        self.runtime, self.loop = VirtualRuntime(loop, seed), loop
        self.url, self.trouble = f"memory://vllm-{next(_names)}", 0.0
        self.fabrics = [  # ranks reach their likes only
            FakeFabric(self.runtime, delay_s=0.001, judge=self.judge, at=loop.call_later) for _ in range(num_ranks)
        ]
        self.ios: list[FaultyIo] = []
        self.engines: dict[Role, list[StagedPrefill | StagedDecode]] = {}
        self.servers: dict[Role, VirtualVllm] = {}
        self.conversations = [self._tokens(self.chance.randrange(1, 3 * BLOCK)) for _ in range(3)]
        self.answered: list[tuple[int, ...]] = []

    def judge(self, op: Op, initiator: PeerId, peer: PeerId, num_bytes: int) -> Fate:
        late_s = tuple(self.chance.choice([None, 0.0, 0.05, 0.5, 2.0]) for _ in range(3))
        delay_s = self.chance.choice([0.0, 0.0, self.chance.uniform(0, 0.01)])
        dice = self.chance.random()
        if dice < self.trouble:
            return Fate(delay_s, fails=True, late_s=late_s, num_moved=self.chance.randint(0, 3))
        if dice < 1.5 * self.trouble:
            return Fate(delay_s, late_s=late_s, flips=[self.chance.randrange(8 * num_bytes)])
        return Fate(delay_s, late_s=late_s)

    def _tokens(self, count: int) -> list[int]:
        return [self.chance.randrange(1000) for _ in range(count)]

    # -- what it is made of -------------------------------------------------------------------------------------------

    async def start(self, stack: AsyncExitStack) -> None:
        links = []
        for role, line in ((Role.PREFILL, PrefillNodeLine), (Role.DECODE, DecodeNodeLine)):
            engine = await self._server(role, stack)
            host = EngineServer({engine.info.engine_id: Served(engine, line)}, self.runtime)
            link = NodeLink(
                NodeId(role.value),
                Line(host, (engine.info,)),
                LinkConfig(),
                lambda *_: None,
                lambda _: None,
                self.runtime,
            )
            await link.start()
            stack.push_async_callback(link.close)
            links.append(link)
            running = asyncio.create_task(self.servers[role].run())
            stack.callback(running.cancel)
        self.store = open_store(self.url, self.namespace, self.namespace.geometry)
        self.index = BlockIndex(object_bytes(self.namespace.geometry), self.runtime)
        servers: Any = self.servers
        config = SchedulerConfig(
            path_policy=self.chance.choice(["prefill", "decode", "split", "shorter"]),
            max_retries=50,
            retry_budget_s=1000.0,
            durable_timeout_s=3.0,
            read_timeout_s=12.0,
            prefill_timeout_s=30.0,
            decode_timeout_s=30.0,
            expected_output_tokens=8,
        )
        self.scheduler = Scheduler(
            prefill_engines=[VllmPrefillEngine(links[0], EngineId("prefill"), servers[Role.PREFILL])],
            decode_engines=[VllmDecodeEngine(links[1], EngineId("decode"), servers[Role.DECODE], Exchanges())],
            index=self.index,
            store=self.store,
            namespace=self.namespace,
            model_name="m",
            max_context_tokens=MAX_TOKENS,
            config=config,
            runtime=self.runtime,
            open_namespace=self.open_namespace,
        )
        await self.scheduler.start()

    async def _server(self, role: Role, stack: AsyncExitStack) -> Any:
        """Of all ranks; who is asked by its control line."""
        num_ranks, failures = len(self.fabrics), list[set[str]]()
        caches = []
        for _ in range(num_ranks):
            memory = torch.zeros((LAYERS, BLOCKS, 1, BLOCK, CONTENT))
            caches.append({f"model.layers.{layer}.attn": memory[layer] for layer in range(LAYERS)})
        engines = self.engines[role] = [await self._node(role, rank, caches[rank]) for rank in range(num_ranks)]
        halves: list[PrefillWorkerHalf | DecodeWorkerHalf] = []
        for engine in engines:
            if isinstance(engine, StagedPrefill):
                halves.append(PrefillWorkerHalf(engine, None if num_ranks == 1 else lambda _: list(failures)))
            else:
                halves.append(DecodeWorkerHalf(engine))
        scheduler = SchedulerHalf(role, BLOCK)
        server = VirtualVllm(role.value, self.runtime, scheduler, halves, caches, self.chance, failures)
        self.servers[role] = server
        server.weights = self.weights[0].name
        if num_ranks == 1:
            return engines[0]
        protocol = PrefillNodeLine if role is Role.PREFILL else DecodeRankLine
        others = []
        for number, engine in enumerate(engines[1:], 1):
            host = EngineServer({engine.info.engine_id: Served(engine, protocol)}, self.runtime)
            line, name = Line(host, (engine.info,)), NodeId(f"{role.value} rank {number}")
            link = NodeLink(name, line, LinkConfig(), lambda *_: None, lambda _: None, self.runtime)
            await link.start()
            stack.push_async_callback(link.close)
            others.append(stub(protocol)(link, engine.info.engine_id))
        first: Any = engines[0]
        return RankedPrefill(first, others) if role is Role.PREFILL else RankedDecode(first, others)

    async def _node(self, role: Role, rank: int, caches: dict[str, torch.Tensor]) -> StagedPrefill | StagedDecode:
        kv, num_ranks = find_kv(caches, BLOCK), len(self.fabrics)
        geometry = replace(kv.geometry, bytes_per_token_layer=num_ranks * kv.geometry.bytes_per_token_layer)
        whole = self.namespace = Namespace("f" * 32, kv.dtype, geometry, "test", kv.layout, num_ranks)
        namespace = whole.parts()[rank]
        settings = ConnectorSettings(
            role=role.value, engine_id=role.value, port=0, store_url=self.url, num_slots=24, num_write_slots=3,
            slot_s=5.0, storage_s=0.4, transfer_s=0.7,
        )  # fmt: skip
        traffic = TrafficManager(
            engine_id=EngineId(role.value),
            node_id=NodeId(role.value),
            role=role,
            geometry=kv.geometry,
            namespace_digest=namespace.digest,
            num_slots=settings.num_slots,
            num_write_slots=0 if role is Role.PREFILL else settings.num_write_slots,
            transport=self.fabrics[rank].transport(peer_id(EngineId(role.value), "1")),
            open_io=lambda _: self._io(namespace),
            storage_nic=StorageNic(5e6, self.runtime),
            runtime=self.runtime,
            storage_deadline_s=settings.storage_s,
            transfer_deadline_s=settings.transfer_s,
        )
        node_weights = NodeWeights(self.weights[0], whole, rank=rank)
        traffic.register_region(kv.region)
        traffic.register_pages(kv.num_blocks)
        await self.runtime.to_thread(traffic.start)
        integrity = WholeBlocks(traffic, namespace)
        parts = NodeParts(
            settings,
            namespace,
            kv,
            traffic,
            integrity,
            self.runtime,
            self.loop,
            self.runtime.worker("kernels"),
            node_weights,
            whole=whole if num_ranks > 1 else None,
            num_ranks=num_ranks,
        )
        return StagedPrefill(parts, MAX_TOKENS) if role is Role.PREFILL else StagedDecode(parts, MAX_TOKENS)

    def _io(self, namespace: Namespace) -> FaultyIo:
        inner = MemoryStore(self.url, namespace.digest, namespace.geometry).open_io(None, self.runtime)
        self.ios.append(FaultyIo(inner, self.runtime, default_delay_s=0.002))
        return self.ios[-1]

    # -- what happens in it -------------------------------------------------------------------------------------------

    async def ask(self, *, is_last: bool = False) -> None:
        """A turn of one of the conversations, to its end or to some moment."""
        await asyncio.sleep(self.chance.uniform(0, 3))
        known = self.chance.choice(self.conversations)
        prompt = (known + self._tokens(self.chance.randrange(1, 60)))[: MAX_TOKENS - 90]
        request = Request(RequestId(f"r{next(_names)}"), tuple(prompt), SamplingParams(self.chance.randrange(1, 80)))
        patience_s = self.chance.choice([1000.0, 1000.0, 1000.0 if is_last else self.chance.uniform(0, 0.5)])
        answer: list[int] = []
        with suppress(TimeoutError, DualPathError):  # what came before must be right all the same
            async with asyncio.timeout(patience_s):
                async for event in self.scheduler.service.generate(request):
                    answer.append(event.token_id)
        record, tokens = self.scheduler.service.record(request.request_id), list(prompt)
        assert record is not None
        self.num_mixed += len({self.name_of(span.version) for span in record.weight_versions}) > 1
        spans = [span for span in record.weight_versions for _ in range(span.end - span.start)]
        for token, span in zip(answer, spans, strict=False):
            weights = self.name_of(span.version)
            assert token == next_token(tokens, weights), f"{request.request_id}: wrong after {len(tokens)} tokens"
            tokens.append(token)
        assert len(answer) == request.sampling.max_tokens or not is_last
        if len(answer) == request.sampling.max_tokens and len(tokens) < MAX_TOKENS - 150:
            self.conversations.append(tokens)
        self.answered.append(tuple(tokens))

    def name_of(self, version: str) -> str:
        return self.weights[0].name if version == "0" else version.partition(" ")[0]

    async def update(self) -> None:
        while True:
            await asyncio.sleep(self.chance.uniform(0, 1.5))
            self.num_updates += 1
            directory = self.chance.choice(self.weights)
            for server in self.servers.values():
                server.refuses_weights = self.chance.choice([0.0, 0.0, 0.5])
            version = f"{directory.name} {self.num_updates}"
            control = self.scheduler.service.control
            mode = self.chance.choice([None, PauseMode.KEEP, PauseMode.WAIT])
            with suppress(WeightsError):
                if mode is not None:
                    await control.pause(mode)
                await control.update_weights(str(directory), version)
            if mode is not None:
                await control.resume()

    async def weather(self) -> None:
        while True:
            await asyncio.sleep(self.chance.uniform(0.1, 1))
            self.trouble = self.chance.choice([0.0, 0.0, 0.02, 0.2])
            for io in self.ios:
                for plan in (io.reads, io.writes):
                    plan.failing = _Some(self.chance.choice([0.0, 0.0, 0.3]), self.chance.random())
                    plan.hanging = _Some(self.chance.choice([0.0, 0.0, 0.2]), self.chance.random())
                    plan.corrupt = _Some(self.chance.choice([0.0, 0.0, 0.1]), self.chance.random())
                    plan.leak_after_s = self.chance.uniform(0.3, 1.5)

    def clear_up(self) -> None:
        self.trouble = 0.0
        for io in self.ios:
            for plan in (io.reads, io.writes):
                plan.failing, plan.hanging, plan.corrupt = set(), set(), set()
        for server in self.servers.values():
            server.preempts, server.refuses_weights = False, 0.0

    async def run(self, num_requests: int) -> None:
        async with AsyncExitStack() as stack:
            await self.start(stack)
            others = [self.weather(), *([self.update()] if len(self.weights) > 1 else [])]
            tasks = [asyncio.create_task(other) for other in others]
            await asyncio.gather(*(self.ask() for _ in range(num_requests)))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.scheduler.service.control.resume()
            self.clear_up()
            await asyncio.sleep(30)
            if len(self.weights) > 1:
                await self.scheduler.service.control.update_weights(
                    str(self.weights[-1]), f"{self.weights[-1].name} end"
                )
            await self.ask(is_last=True)
            await asyncio.sleep(30)
            self.check()
            await self.scheduler.close(5.0)

    def check(self) -> None:
        for role, server in self.servers.items():
            assert server.violations == []
            assert server.num_blocks_used == 0, f"{role}: vLLM's blocks are held"
            for engine in self.engines[role]:
                engine.check_idle()
                engine.parts.traffic.slots.check_integrity()
                assert engine.parts.traffic.slots.num_used == 0, f"{role}: slots are held"
                assert engine.parts.traffic.write_slots.num_used == 0, f"{role}: write slots are held"
        self._check_store()

    def _check_store(self) -> None:
        """By each of the weights' namespace, whatever they were when a block was stored."""
        num_stored = 0
        for directory in self.weights:
            fingerprint = self.engines[Role.DECODE][0].parts.weights._start.fingerprint_of(directory)
            namespace = replace(self.namespace, model_fingerprint=fingerprint)
            expected: dict[bytes, tuple[int, ...]] = {}
            for tokens in self.answered:
                keys = chain_keys(root_key(namespace), tokens, BLOCK)
                expected |= {key: tokens[: (number + 1) * BLOCK] for number, key in enumerate(keys)}
            for rank, part in enumerate(namespace.parts()):
                store = MemoryStore(self.url, part.digest, part.geometry)
                for key in [block.key for block in store.list_blocks()]:
                    num_stored += 1
                    found = parse_header(store.read_header(key)).digests.tolist()
                    right = digests(expected[key], directory.name, rank)
                    assert found == right, "a stored block is not what its key says"
        assert num_stored > 3

    async def open_namespace(self, namespace: Namespace) -> None:
        if not self.index.knows_namespace(namespace.digest):
            found = open_store(self.url, namespace, namespace.geometry)
            self.index.adopt(namespace.digest, found.list_blocks())


class _Some:
    """Holds a part of all keys."""

    def __init__(self, part: float, salt: float) -> None:
        self._part, self._salt = part, salt

    def __contains__(self, key: object) -> bool:
        return self._part > 0 and random.Random(f"{key!r} {self._salt}").random() < self._part


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_whatever_fails_no_token_is_wrong_and_nothing_is_held(seed: int, tmp_path: Path) -> None:
    _run(seed, [model_dir(tmp_path / "start", 0)])


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_weights_change_meanwhile(seed: int, tmp_path: Path) -> None:
    """On both servers or on none; every token is of the weights that its record names, and stored under their name."""
    world = _run(seed, [model_dir(tmp_path / name, number) for number, name in enumerate(("start", "a", "b"))])
    assert world.num_updates > 1


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_servers_have_two_ranks(seed: int, tmp_path: Path) -> None:
    """Which fail each on its own; seeds that are odd change weights, too."""
    names = ("start", "a", "b") if seed % 2 else ("start",)
    _run(seed, [model_dir(tmp_path / name, number) for number, name in enumerate(names)], num_ranks=2)


def _run(seed: int, weights: Sequence[Path], num_ranks: int = 1) -> World:
    loop = VirtualLoop(seed)
    loop.max_steps = 2_000_000
    world = World(seed, loop, weights, num_ranks)
    try:
        loop.run_until_complete(world.run(14))
    finally:
        loop.wind_up()
        loop.close()
        forget(world.url)
    return world
