"""What a simulated process is made of: real engines on the hash model, the fake fabric and faulty storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dualpath.config import ClusterConfig, ModelConfig, NodeConfig, RayConfig, ServeConfig, StoreConfig
from dualpath.core.errors import StoreFullError
from dualpath.core.ids import BlockKey, EngineId, NodeId, peer_id
from dualpath.core.plan import Role
from dualpath.engine.decode import DecodeConfig, DecodeEngine
from dualpath.engine.prefill import PrefillConfig, PrefillEngine
from dualpath.protocol import wire
from dualpath.scheduler.config import SchedulerConfig
from dualpath.store.contract import StoreIo
from dualpath.store.header import object_bytes
from dualpath.store.memory import MemoryStore
from dualpath.testing.faulty_store import FaultyIo
from dualpath.testing.hash_model import BLOCK_TOKENS, GEOMETRY, NAMESPACE, HashModel, HashUpdates
from dualpath.testing.runtime import VirtualRuntime
from dualpath.testing.scenario import Scenario
from dualpath.testing.weather import Weather, directory_error
from dualpath.traffic.fake_transport import FakeFabric
from dualpath.traffic.manager import TrafficManager
from dualpath.traffic.storage_nic import StorageNic

T = TypeVar("T")

MAX_CONTEXT_TOKENS = 4096
HEARTBEAT_S, LEASE_S, GATEWAY_LEASE_S = 1.0, 10.0, 3.0
SLOT_S, STORAGE_S, TRANSFER_S = 5.0, 0.4, 0.7  # engines' deadlines
_NIC_BYTES_PER_S = 5e5


@dataclass(slots=True)
class Surroundings:
    """What all processes of a world share."""

    scenario: Scenario
    fabric: FakeFabric
    weather: Weather
    url: str  # of the store
    engines: dict[EngineId, PrefillEngine | DecodeEngine] = field(default_factory=dict)  # those that live


def node_names(scenario: Scenario) -> dict[str, Role]:
    prefill = {f"prefill{i}": Role.PREFILL for i in range(scenario.num_prefill)}
    return prefill | {f"decode{i}": Role.DECODE for i in range(scenario.num_decode)}


def engine_names(scenario: Scenario, node: str) -> list[EngineId]:
    if scenario.engines_per_node == 1:
        return [EngineId(node)]
    return [EngineId(f"{node}-{rank}") for rank in range(scenario.engines_per_node)]


def scheduler_config(scenario: Scenario) -> SchedulerConfig:
    return SchedulerConfig(
        path_policy=scenario.path,
        beta_tokens=400,
        expected_output_tokens=8,
        default_nic_bytes_per_s=_NIC_BYTES_PER_S,
        max_retries=12,
        durable_timeout_s=3.0,
        queue_timeout_s=120.0,
        reserve_timeout_s=12.0,
        read_timeout_s=12.0,
        prefill_timeout_s=30.0,
        decode_timeout_s=30.0,
        release_timeout_s=3.0,
        stats_timeout_s=3.0,
        lease_s=LEASE_S,
        capacity_bytes=None if scenario.capacity_blocks is None else scenario.capacity_blocks * object_bytes(GEOMETRY),
        max_finished_records=200,
    )


def serve_config(scenario: Scenario, url: str) -> ServeConfig:
    nodes = [NodeConfig(name=name, role=role.value) for name, role in node_names(scenario).items()]
    gateway = NodeConfig(name="gateway", role="gateway")
    return ServeConfig(
        model=ModelConfig(dir=Path("/hash")),
        store=StoreConfig(url=url, block_tokens=BLOCK_TOKENS),
        cluster=ClusterConfig(path=scenario.path),
        ray=RayConfig(heartbeat_s=HEARTBEAT_S, kill_silent_s=5.0, lease_s=LEASE_S, start_s=300.0),
        nodes=(gateway, *nodes) if scenario.is_remote else (),
    )


class FaultyStore(MemoryStore):
    """The directory as a process sees it. Its calls take time, so nobody may make them on an event loop."""

    def __init__(
        self, url: str, weather: Weather, runtime: VirtualRuntime, namespace_digest: bytes = NAMESPACE.digest
    ) -> None:
        super().__init__(url, namespace_digest, GEOMETRY)
        self._weather, self._runtime = weather, runtime

    def delete(self, key: BlockKey) -> None:
        self._take_time(key)
        super().delete(key)

    def read_header(self, key: BlockKey) -> bytes:
        self._take_time(key)
        return super().read_header(key)

    def list_blocks(self) -> Any:
        self._take_time(None)
        return super().list_blocks()

    def exists(self, key: BlockKey) -> bool:
        self._suffer(key)
        return super().exists(key)

    def try_write(self, num_bytes: int | None = None) -> None:
        """The directory has its place on every node's storage: where one is full, it is."""
        self._suffer(None)
        if self._weather.strength("full"):
            raise StoreFullError("injected")

    def _suffer(self, key: BlockKey | None) -> None:
        """Time and failures, from dice of its own: others fall as they did without."""
        dice = self._weather.directory_dice
        self._runtime.block_s(dice.uniform(0, 0.002 + 2 * self._weather.strength("slow directory")))
        if dice.random() < self._weather.strength("fail directory"):
            raise directory_error(key)

    def _take_time(self, key: BlockKey | None) -> None:
        strength = self._weather.strength("slow directory")
        self._runtime.block_s(self._runtime.chance.uniform(0, 0.002 + 2 * strength))
        if key is not None and self._weather.meets("fail directory"):
            raise directory_error(key)


class NodeWorks:
    """One node's engines: ``cluster.node_process.Parts`` without a checkpoint."""

    def __init__(self, around: Surroundings, name: str, role: Role, runtime: VirtualRuntime) -> None:
        self._around, self._name, self._role, self._runtime = around, name, role, runtime
        self._nic = StorageNic(_NIC_BYTES_PER_S, runtime)
        self._store = MemoryStore(around.url, NAMESPACE.digest, GEOMETRY)
        self._updates = HashUpdates(runtime)
        self._engines: list[PrefillEngine | DecodeEngine] = []

    @property
    def engines(self) -> Sequence[PrefillEngine | DecodeEngine]:
        return self._engines

    @property
    def lost(self) -> str | None:
        return None

    async def start(self) -> None:
        for engine_id in engine_names(self._around.scenario, self._name):
            engine = self._prefill(engine_id) if self._role is Role.PREFILL else self._decode(engine_id)
            self._engines.append(engine)
            await engine.start()
            self._around.engines[engine_id] = engine

    async def close(self) -> None:
        for engine in self._engines:
            await engine.close()

    def report(self) -> wire.NodeReport:
        infos = tuple(engine.info for engine in self._engines)
        limits = wire.encode(scheduler_config(self._around.scenario))
        return wire.NodeReport(NAMESPACE, "hash", MAX_CONTEXT_TOKENS, infos, limits, "host", 1)

    def _prefill(self, engine_id: EngineId) -> PrefillEngine:
        scenario = self._around.scenario
        return PrefillEngine(
            engine_id=engine_id,
            node_id=NodeId(self._name),
            model=HashModel(self._runtime, scenario.compute_scale),
            updates=self._updates,
            geometry=GEOMETRY,
            namespace=NAMESPACE,
            traffic=self._traffic(engine_id, scenario.num_prefill_slots, 0),
            config=PrefillConfig(
                scenario.workspace_tokens,
                streams_layers=scenario.streams_layers,
                max_batch_tokens=scenario.max_batch_tokens,
                slot_deadline_s=SLOT_S,
                transfer_deadline_s=TRANSFER_S,
                verifies=scenario.verifies,
            ),
            runtime=self._runtime,
        )

    def _decode(self, engine_id: EngineId) -> DecodeEngine:
        scenario = self._around.scenario
        return DecodeEngine(
            engine_id=engine_id,
            node_id=NodeId(self._name),
            model=HashModel(self._runtime, scenario.compute_scale),
            updates=self._updates,
            geometry=GEOMETRY,
            namespace=NAMESPACE,
            traffic=self._traffic(engine_id, scenario.num_decode_slots, scenario.num_write_slots),
            config=DecodeConfig(scenario.device_kv_tokens, slot_deadline_s=SLOT_S, verifies=scenario.verifies),
            runtime=self._runtime,
        )

    def _traffic(self, engine_id: EngineId, num_slots: int, num_write_slots: int) -> TrafficManager:
        return TrafficManager(
            engine_id=engine_id,
            node_id=NodeId(self._name),
            role=self._role,
            geometry=GEOMETRY,
            namespace_digest=NAMESPACE.digest,
            num_slots=num_slots,
            num_write_slots=num_write_slots,
            transport=self._around.fabric.transport(peer_id(engine_id, self._runtime.unique_id()[:8])),
            open_io=lambda _: self._io(),
            storage_nic=self._nic,
            runtime=self._runtime,
            storage_deadline_s=STORAGE_S,
            transfer_deadline_s=TRANSFER_S,
        )

    def _io(self) -> StoreIo:
        delay_s = self._around.scenario.storage_delay_s
        io = FaultyIo(self._store.open_io(None, self._runtime), self._runtime, default_delay_s=delay_s)
        io.reads, io.writes = self._around.weather.plans(self._name)
        return io
