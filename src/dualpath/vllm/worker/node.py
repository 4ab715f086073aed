"""The node in a vLLM worker: staging buffer, traffic manager and control line, all on threads of their own.

Nothing here waits for vLLM's steps: an idle server reads and writes storage, and answers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from dataclasses import dataclass
from typing import Any

from dualpath.core.errors import ConfigError, DualPathError, EngineLostError
from dualpath.core.handshake import door_key
from dualpath.core.ids import EngineId, NodeId, peer_id
from dualpath.core.keys import Namespace
from dualpath.core.plan import Role
from dualpath.core.runtime import Runtime, SystemRuntime
from dualpath.protocol import wire
from dualpath.protocol.host import EngineServer, Served, caller_of
from dualpath.protocol.socket_channel import NodeServer
from dualpath.store.contract import BlockStore
from dualpath.store.open import open_store
from dualpath.traffic.manager import TrafficManager
from dualpath.traffic.nixl_transport import NixlTransport
from dualpath.traffic.storage_nic import StorageNic
from dualpath.vllm.line import DecodeNodeLine, PrefillNodeLine
from dualpath.vllm.settings import ConnectorSettings
from dualpath.vllm.worker.kv_region import VllmKv
from dualpath.vllm.worker.parts import NodeParts, WholeBlocks
from dualpath.vllm.worker.ranked import RankedPrefill
from dualpath.vllm.worker.ranked_decode import DecodeRankLine, RankedDecode
from dualpath.vllm.worker.ranks import ABANDONED, MEET_S, OtherRanks, Ranks, claim, patience_s, silence_s
from dualpath.vllm.worker.staged_decode import StagedDecode
from dualpath.vllm.worker.staged_prefill import StagedPrefill
from dualpath.vllm.worker.weights import NodeWeights

_log = logging.getLogger(__name__)
_START_S = 60.0
_END_S = 10.0


@dataclass(frozen=True, slots=True)
class ModelFacts:
    name: str
    max_context_tokens: int


class Node:
    """``start`` from vLLM's thread, then any thread. ``engine`` is what the worker half drives."""

    engine: StagedPrefill | StagedDecode

    def __init__(
        self,
        settings: ConnectorSettings,
        namespace: Namespace,
        kv: VllmKv,
        model: ModelFacts,
        secret: bytes,
        weights: NodeWeights,
        runtime: Runtime | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Allocates and registers all memory. ``namespace``: the whole server's. ``ranks``: where it has several, this
        one among them. Raises ConfigError or TransferError.
        """
        self._settings, self._whole, self._model = settings, namespace, model
        self._runtime = runtime = runtime or SystemRuntime()
        self._ranks = ranks
        self._rank, num_ranks = (0, 1) if ranks is None else (ranks.rank, ranks.num_ranks)
        incarnation = runtime.unique_id()[:8]
        if ranks is not None:
            incarnation = ranks.gather(incarnation)[0]  # ranks move KV with their likes, by one name for all
        is_split = namespace.num_ranks > 1
        namespace = namespace.part(self._rank)
        self._loop = asyncio.new_event_loop()
        self._thread = runtime.worker(f"{settings.engine_id}-line")
        self._store = open_store(settings.store_url, namespace, kv.geometry)
        self._traffic = _traffic(settings, namespace, kv, self._store, runtime, incarnation, num_ranks)
        verifies = settings.verify == "all" or (settings.verify == "auto" and not kv.region.storage.is_cuda)
        integrity = WholeBlocks(self._traffic, namespace) if verifies else None
        self._traffic.register_region(kv.region)
        if verifies:
            self._traffic.register_pages(kv.num_blocks)  # a block's header takes the page of its number
        self._parts = NodeParts(
            settings,
            namespace,
            kv,
            self._traffic,
            integrity,
            runtime,
            self._loop,
            runtime.worker(f"{settings.engine_id}-kernels"),
            weights,
            door_key(secret),
            self._whole if is_split else None,
            num_ranks,
            stores=is_split or self._rank == 0,
        )
        self._process = _Process(self, runtime)
        self._server = NodeServer(self._process, secret)
        self._secret = secret
        self._others = OtherRanks(EngineId(settings.engine_id), runtime)
        self._watching: asyncio.Task[None] | None = None
        self.port = settings.port

    def start(self) -> None:
        """Returns when the control line is open, the first rank's when all ranks' are. Raises ConfigError where its
        address cannot be had."""
        self._traffic.start()
        kind = StagedPrefill if self._is_prefill else StagedDecode
        self.engine = kind(self._parts, self._model.max_context_tokens)
        self._thread.run(self._loop.run_forever, self._loop_ended)
        if self._rank:
            self._runtime.wait(self._parts.spawn(self._open_rank()), _START_S)
        found = [] if self._ranks is None else self._ranks.gather((self.port, self._whole.digest))
        if not self._rank:
            self._runtime.wait(self._parts.spawn(self._open(found[1:])), _START_S)
        _log.info(
            "DualPath: %s of %s answers on %s:%d, namespace %s",
            self._settings.engine_id,
            self._model.name,
            self._settings.host,
            self.port,
            self._whole.digest.hex(),
        )

    async def _open(self, others: list[tuple[int, bytes]]) -> None:
        """The first rank. ``others``: port and namespace of the others."""
        served: Any = self.engine
        if others:
            served = await self._join(others)
        await self._serve(served, PrefillNodeLine if self._is_prefill else DecodeNodeLine, self._settings.port)
        lease_s = self._settings.lease_s
        if lease_s is not None:
            limit_s = patience_s(lease_s) if others else lease_s
            self._watching = asyncio.create_task(self._watch(limit_s, "the scheduler"))

    async def _open_rank(self) -> None:
        """Another one."""
        settings = self._settings
        if settings.port:  # the first rank's says the same of its former process
            place = f"{settings.host}:{settings.port}"
            self._claimed = await claim(f"{settings.engine_id} {place} rank {self._rank}", self._runtime)
        await self._serve(self.engine, PrefillNodeLine if self._is_prefill else DecodeRankLine, 0)
        limit_s = silence_s(settings.lease_s)
        self._watching = asyncio.create_task(self._watch(limit_s, "the first rank", max(limit_s, MEET_S)))

    async def _serve(self, engine: Any, line: type, port: int) -> None:
        await self._process.open_server(engine, line)
        try:
            self.port = await self._server.start(self._settings.host, port)
        except OSError as error:
            place = f"{self._settings.host}:{port}"
            raise ConfigError(f"dualpath.port: cannot listen on {place}: {error.strerror or error}") from None

    async def _join(self, others: list[tuple[int, bytes]]) -> RankedPrefill | RankedDecode:
        """Raises ConfigError where ranks differ."""
        if any(digest != self._whole.digest for _, digest in others):
            raise ConfigError("DualPath cannot serve this: ranks have KV of different shapes")
        ports, limit_s = [port for port, _ in others], silence_s(self._settings.lease_s)
        line = PrefillNodeLine if self._is_prefill else DecodeRankLine
        engines = await self._others.meet(self._settings.host, ports, self._secret, line, limit_s)
        if isinstance(self.engine, StagedPrefill):
            return RankedPrefill(self.engine, engines)
        return RankedDecode(self.engine, engines)

    @property
    def _is_prefill(self) -> bool:
        return self._settings.engine_role is Role.PREFILL

    async def _watch(self, limit_s: float, whom: str, meet_s: float | None = None) -> None:
        """Whoever gives this server up for dead after that long may reuse the memory that it could write. ``meet_s``:
        until it has been heard for the first time."""
        while (silent_s := self._process.silent_s) < (limit_s if meet_s is None or self._process.is_met else meet_s):
            await self._runtime.sleep_s(min(1.0, limit_s / 4))
        _log.error("nothing heard of %s for %g s: ending", whom, silent_s)
        os._exit(ABANDONED)

    def _loop_ended(self, error: Exception | None) -> None:
        if error is not None:
            _log.error("the control line's thread has ended", exc_info=error)

    def report(self) -> wire.NodeReport:
        """Of the weights of the start, whatever the model has got since: ``weights`` says that."""
        return wire.NodeReport(
            self._whole,
            self._model.name,
            self._model.max_context_tokens,
            (self._process.served.info,),
            b"",  # vLLM has no profile of ours
            socket.gethostname(),
            os.getpid(),
        )

    def close(self) -> None:
        """Idempotent. Memory that something can still write stays for the life of the process."""
        if self._loop.is_closed():
            return
        if self._loop.is_running():
            try:
                self._runtime.wait(self._parts.spawn(self._close()), _END_S)
            except (TimeoutError, DualPathError) as error:
                _log.warning("the control line did not end: %r", error)
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._traffic.close()
        self._thread.close(_END_S)
        self._parts.after_kernels.close(_END_S)
        self._store.close()
        if not self._loop.is_running():
            self._loop.close()

    async def _close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await self._others.close()
        await self._process.close()
        if isinstance(self._process.served, RankedDecode):
            await self._process.served.close()
        await self._server.end()
        if isinstance(self.engine, StagedDecode):
            await self.engine.close()


class _Process:
    """``protocol.channel.Process``: the engines are there before anybody can ask."""

    def __init__(self, node: Node, runtime: Runtime) -> None:
        self._node, self._runtime = node, runtime
        self._incarnation = runtime.unique_id()
        self._server: EngineServer | None = None
        self.served: Any = None
        self.is_met = False
        self._heard_at_s = runtime.now_s()

    @property
    def silent_s(self) -> float:
        return self._runtime.now_s() - self._heard_at_s

    async def open_server(self, engine: Any, line: type) -> None:
        self.served = engine
        self._server = EngineServer({engine.info.engine_id: Served(engine, line)}, self._runtime)
        self._heard_at_s = self._runtime.now_s()

    async def open(self, session: str) -> bytes:
        server = self._heard(session)
        held = await server.open(session)
        report = self._node.report()
        return wire.encode(wire.Opened(self._incarnation, (), None, report, held, server.others(session)))

    async def send(self, session: str, batch: bytes) -> None:
        self._heard(session).receive(session, batch)

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        return await self._heard(session).poll(session, max_wait_s)

    async def close(self) -> None:
        if self._server is not None:
            await self._server.close()

    def _heard(self, session: str) -> EngineServer:
        """Only the scheduler keeps a lease: no other caller does, whoever still talks to it."""
        if not caller_of(session):
            self._heard_at_s, self.is_met = self._runtime.now_s(), True
        if self._server is None:
            raise EngineLostError("the node is starting")
        return self._server


def _traffic(
    settings: ConnectorSettings,
    namespace: Namespace,
    kv: VllmKv,
    store: BlockStore,
    runtime: Runtime,
    incarnation: str,
    num_ranks: int,
) -> TrafficManager:
    engine_id, role = EngineId(settings.engine_id), settings.engine_role
    rate = settings.nic_bytes_per_s  # the server's, of which each rank has a part
    return TrafficManager(
        engine_id=engine_id,
        node_id=NodeId(settings.node_id or settings.engine_id),
        role=role,
        geometry=kv.geometry,
        namespace_digest=namespace.digest,
        num_slots=settings.num_slots,
        num_write_slots=0 if role is Role.PREFILL else settings.num_write_slots,
        transport=NixlTransport(peer_id(engine_id, incarnation)),
        open_io=lambda transport: store.open_io(transport.agent, runtime),
        storage_nic=StorageNic(None if rate is None else rate / num_ranks, runtime),
        runtime=runtime,
        storage_deadline_s=settings.storage_s,
        transfer_deadline_s=settings.transfer_s,
    )
