"""The node in a vLLM worker: staging buffer, traffic manager and control line, all on threads of their own.

Nothing here waits for vLLM's steps: an idle server reads and writes storage, and answers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from dataclasses import dataclass

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
from dualpath.vllm.worker.staged_decode import StagedDecode
from dualpath.vllm.worker.staged_prefill import StagedPrefill
from dualpath.vllm.worker.weights import NodeWeights

_log = logging.getLogger(__name__)
_START_S = 60.0
_END_S = 10.0
_ABANDONED = 75  # exit code


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
    ) -> None:
        """Allocates and registers all memory. Raises ConfigError or TransferError."""
        self._settings, self._namespace, self._model = settings, namespace, model
        self._runtime = runtime = runtime or SystemRuntime()
        self._loop = asyncio.new_event_loop()
        self._thread = runtime.worker(f"{settings.engine_id}-line")
        self._store = open_store(settings.store_url, namespace, kv.geometry)
        self._traffic = _traffic(settings, namespace, kv, self._store, runtime)
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
        )
        self._process = _Process(self, runtime)
        self._server = NodeServer(self._process, secret)
        self.port = settings.port

    def start(self) -> None:
        """Returns when the control line is open. Raises ConfigError where its address cannot be had."""
        self._traffic.start()
        kind = StagedPrefill if self._settings.engine_role is Role.PREFILL else StagedDecode
        self.engine = kind(self._parts, self._model.max_context_tokens)
        self._thread.run(self._loop.run_forever, self._loop_ended)
        self._runtime.wait(self._parts.spawn(self._open()), _START_S)
        _log.info(
            "DualPath: %s of %s answers on %s:%d, namespace %s",
            self._settings.engine_id,
            self._model.name,
            self._settings.host,
            self.port,
            self._namespace.digest.hex(),
        )

    async def _open(self) -> None:
        await self._process.open_server(self.engine)
        try:
            self.port = await self._server.start(self._settings.host, self._settings.port)
        except OSError as error:
            place = f"{self._settings.host}:{self._settings.port}"
            raise ConfigError(f"dualpath.port: cannot listen on {place}: {error.strerror or error}") from None
        if self._settings.lease_s is not None:
            self._lease = asyncio.create_task(self._watch(self._settings.lease_s))

    async def _watch(self, lease_s: float) -> None:
        """Whoever gives this server up for dead after that long may reuse the memory that it could write."""
        while self._runtime.now_s() - self._process.heard_at_s < lease_s:
            await self._runtime.sleep_s(min(1.0, lease_s / 4))
        _log.error("nothing heard of the scheduler for %g s: ending", lease_s)
        os._exit(_ABANDONED)

    def _loop_ended(self, error: Exception | None) -> None:
        if error is not None:
            _log.error("the control line's thread has ended", exc_info=error)

    def report(self) -> wire.NodeReport:
        """Of the weights of the start, whatever the model has got since: ``weights`` says that."""
        return wire.NodeReport(
            self._namespace,
            self._model.name,
            self._model.max_context_tokens,
            (self.engine.info,),
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
        await self._process.close()
        await self._server.end()
        if isinstance(self.engine, StagedDecode):
            await self.engine.close()


class _Process:
    """``protocol.channel.Process``: the engines are there before anybody can ask."""

    def __init__(self, node: Node, runtime: Runtime) -> None:
        self._node, self._runtime = node, runtime
        self._incarnation = runtime.unique_id()
        self._server: EngineServer | None = None
        self.heard_at_s = runtime.now_s()

    async def open_server(self, engine: StagedPrefill | StagedDecode) -> None:
        line = PrefillNodeLine if engine.role is Role.PREFILL else DecodeNodeLine
        self._server = EngineServer({engine.info.engine_id: Served(engine, line)}, self._runtime)

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
            self.heard_at_s = self._runtime.now_s()
        if self._server is None:
            raise EngineLostError("the node is starting")
        return self._server


def _traffic(
    settings: ConnectorSettings, namespace: Namespace, kv: VllmKv, store: BlockStore, runtime: Runtime
) -> TrafficManager:
    engine_id, role = EngineId(settings.engine_id), settings.engine_role
    return TrafficManager(
        engine_id=engine_id,
        node_id=NodeId(settings.node_id or settings.engine_id),
        role=role,
        geometry=kv.geometry,
        namespace_digest=namespace.digest,
        num_slots=settings.num_slots,
        num_write_slots=0 if role is Role.PREFILL else settings.num_write_slots,
        transport=NixlTransport(peer_id(engine_id, runtime.unique_id()[:8])),
        open_io=lambda transport: store.open_io(transport.agent, runtime),
        storage_nic=StorageNic(settings.nic_bytes_per_s, runtime),
        runtime=runtime,
        storage_deadline_s=settings.storage_s,
        transfer_deadline_s=settings.transfer_s,
    )
