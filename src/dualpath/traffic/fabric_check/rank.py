"""One node's part of a check: collectives in step with all ranks, KV beside them where the phase wants it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import msgspec
import torch.distributed as dist

from dualpath.core.errors import DualPathError
from dualpath.traffic.fabric_check.collective import Collective, Store, take_real_time
from dualpath.traffic.fabric_check.kv_load import KvLoad
from dualpath.traffic.fabric_check.plan import CheckPlan, Load
from dualpath.traffic.fabric_check.verdict import CheckResult, ClusterPhase, RankSample

OnPhase = Callable[[int, Load], None]
_SETTLE_S = 0.3  # TCP's windows open, or the last packets leave


def run_rank(plan: CheckPlan, rank: int, master: tuple[str, int], on_phase: OnPhase) -> CheckResult:
    """Take part as ``rank`` of ``plan.world``; rank 0 listens at ``master``. Returns the same result on every rank.

    ``on_phase`` is called on rank 0 before each phase, while all others wait, at most the deadline. Raises
    DualPathError when a rank, the KV or the network does not come along within the plan's deadline.
    """
    kv = KvLoad(rank, plan.num_transfers, plan.deadline_s)  # before this process is given priority
    try:
        store = _join(plan, rank, master)
        _connect(kv, store, plan, rank)
        has_real_time = take_real_time()
        collective = Collective(plan, rank, store)
        try:
            member = _Member(plan, rank, kv, collective, store, on_phase)
            phases = tuple(member.phase(number, load) for number, load in enumerate(plan.phases))
            collective.barrier()  # rank 0 holds the store: nobody may need it any more when it leaves
        finally:
            collective.close()
    finally:
        kv.close()
    return CheckResult(plan, phases, has_real_time)


@dataclass(frozen=True, slots=True)
class _Member:
    """A rank that has met the others."""

    plan: CheckPlan
    rank: int
    kv: KvLoad
    collective: Collective
    store: Store
    on_phase: OnPhase

    def phase(self, number: int, load: Load) -> ClusterPhase:
        if self.rank == 0:
            self.on_phase(number, load)
        self.collective.barrier()
        if load is not Load.IDLE:
            self.kv.start()
        time.sleep(_SETTLE_S)
        sample = self._measure()
        if load is not Load.IDLE:
            self.kv.stop()
        return ClusterPhase.of(load, self._exchange(number, sample), self.plan)

    def _measure(self) -> RankSample:
        self.collective.barrier()
        moved_bytes, start_s = self.kv.moved_bytes, time.perf_counter()
        latencies_s = self.collective.run(self.plan.num_ops)
        duration_s = time.perf_counter() - start_s
        return RankSample(tuple(latencies_s), duration_s, self.kv.moved_bytes - moved_bytes)

    def _exchange(self, number: int, sample: RankSample) -> list[RankSample]:
        """Every rank's sample, in order."""
        self.store.set(f"phase/{number}/{self.rank}", msgspec.msgpack.encode(sample))
        keys = [f"phase/{number}/{rank}" for rank in range(self.plan.world)]
        return [msgspec.msgpack.decode(_get(self.store, key), type=RankSample) for key in keys]


def _join(plan: CheckPlan, rank: int, master: tuple[str, int]) -> Store:
    host, port = master
    try:
        # torch alone would listen on every interface, whatever host it is told.
        listener = socket.create_server(master).detach() if rank == 0 else None
        return dist.TCPStore(  # type: ignore[attr-defined]
            host,
            port,
            plan.world,
            is_master=rank == 0,
            timeout=timedelta(seconds=plan.deadline_s),
            wait_for_workers=True,
            master_listen_fd=listener,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise DualPathError(
            f"rank {rank} of {plan.world} cannot meet the others at {host}:{port}: {_one_line(error)}"
        ) from None


def _connect(kv: KvLoad, store: Store, plan: CheckPlan, rank: int) -> None:
    """Each rank pushes to the next: every NIC sends one stream of KV and receives one."""
    store.set(f"kv/{rank}", kv.metadata())
    kv.connect(_get(store, f"kv/{(rank + 1) % plan.world}"))


def _get(store: Store, key: str) -> bytes:
    """Waits for the rank that sets it."""
    try:
        value: bytes = store.get(key)
    except RuntimeError as error:
        raise DualPathError(f"a rank did not report {key}: {_one_line(error)}") from None
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
