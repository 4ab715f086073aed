"""Watches every NIC of a testbed by the kernel's counters while a system runs, and puts the program's beside them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dualpath.core.plan import Direction, Role
from dualpath.core.stats import ClusterStats, EngineStats
from dualpath.scheduler.service import Service
from dualpath.testbed.counters import NicCounters, read_nics
from dualpath.testbed.spec import KV_NIC, STORAGE_NIC, TestbedSpec
from dualpath.testbed.system import processes_in

SAMPLE_S = 1.0
PEAK_S = 3.0  # a rate is looked at over so long: far beyond what the shapers' bursts can add
# Of each packet: Ethernet 14, IPv4 20, TCP 20, its timestamps 12. An acknowledgement is nothing else; those of what a
# NIC receives would count as sent by it.
HEADER_BYTES = 66
_SETTLE_S, _POLL_S = 30.0, 0.1
_REST_S, _REST_BYTES = 0.5, 4096


@dataclass(slots=True)
class NicWatch:
    """(moment, all NICs) from the start of a run; the program's counters and CPU times at both ends of it."""

    spec: TestbedSpec
    samples: list[tuple[float, list[NicCounters]]] = field(default_factory=list)
    stats: list[ClusterStats] = field(default_factory=list)
    cpu_s: list[dict[str, float]] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """What a system's entry in the JSON gains: ``nics``, ``nic_samples`` and ``cpu_s``."""
        before, after = self.cpu_s
        return {
            "nics": self._nics(),
            "nic_samples": {
                "moments_s": [round(moment, 3) for moment, _ in self.samples],
                **{f"{nic.host}/{nic.nic}": self._series(i) for i, nic in enumerate(self.samples[0][1])},
            },
            "cpu_s": {host: round(after[host] - before[host], 2) for host in after},
        }

    def _nics(self) -> list[dict[str, Any]]:
        out = []
        for index, first in enumerate(self.samples[0][1]):
            last = self.samples[-1][1][index]
            received, sent = program_bytes(first.host, first.nic, *self.stats)
            num_rx, num_tx = last.rx_bytes - first.rx_bytes, last.tx_bytes - first.tx_bytes
            rx_headers = HEADER_BYTES * (last.rx_packets - first.rx_packets)
            tx_headers = HEADER_BYTES * (last.tx_packets - first.tx_packets)
            out.append(
                {
                    "host": first.host,
                    "nic": first.nic,
                    "rx_bytes": num_rx,
                    "tx_bytes": num_tx,
                    "rx_header_bytes": rx_headers,
                    "tx_header_bytes": tx_headers,
                    "program_rx_bytes": received,
                    "program_tx_bytes": sent,
                    "rx_excess": excess(num_rx - rx_headers, received),
                    "tx_excess": excess(num_tx - tx_headers, sent),
                    "peak_rx_mbps": self._peak_mbps(index, "rx_bytes"),
                    "peak_tx_mbps": self._peak_mbps(index, "tx_bytes"),
                    "rate_mbps": _rate_mbps(self.spec, first),
                }
            )
        return out

    def _series(self, index: int) -> dict[str, list[int]]:
        first = self.samples[0][1][index]
        nics = [sample[index] for _, sample in self.samples]
        return {
            "rx_bytes": [nic.rx_bytes - first.rx_bytes for nic in nics],
            "tx_bytes": [nic.tx_bytes - first.tx_bytes for nic in nics],
        }

    def _peak_mbps(self, index: int, counter: str) -> float:
        """The highest mean rate over ``PEAK_S``; of a shorter run, over all of it."""
        points = [(moment, getattr(sample[index], counter)) for moment, sample in self.samples]
        best = 0.0
        for i, (start_s, start) in enumerate(points):
            moment, end = next((p for p in points[i:] if p[0] - start_s >= PEAK_S), points[-1])
            if moment > start_s and (moment - start_s >= PEAK_S or i == 0):
                best = max(best, (end - start) * 8e-6 / (moment - start_s))
        return round(best, 1)


def excess(payload_bytes: int, program_bytes: int | None) -> float | None:
    """How much more payload the kernel saw than the program moved, as a fraction: requests, what was sent again.

    None where the program moved nothing, or does not know.
    """
    return round(payload_bytes / program_bytes - 1, 4) if program_bytes else None


def program_bytes(host: str, nic: str, before: ClusterStats, after: ClusterStats) -> tuple[int | None, int | None]:
    """(received, sent) through a NIC as the engines have counted it; None where they do not, or cannot be asked.

    KV is counted by who moves it, the prefill side; one decode node alone gets all of it.
    """
    nodes = {str(engine.node_id): engine.role for engine in before.engines}
    gained = [(engine, _gain(engine, before)) for engine in after.engines]
    silent = nodes.keys() - {engine.node_id for engine in after.engines}
    is_silent = host in silent if host in nodes else bool(silent)
    if is_silent or nic not in (STORAGE_NIC, KV_NIC):
        return None, None
    here = [gain for engine, gain in gained if engine.node_id == host]
    if nic == STORAGE_NIC:
        counted = here if host in nodes else [gain for _, gain in gained]
        read, written = sum(gain.read for gain in counted), sum(gain.written for gain in counted)
        return (read, written) if host in nodes else (written, read)
    to_prefill, to_decode = Direction.DECODE_TO_PREFILL.value, Direction.PREFILL_TO_DECODE.value
    if nodes[host] is Role.PREFILL:
        return sum(gain.kv.get(to_prefill, 0) for gain in here), sum(gain.kv.get(to_decode, 0) for gain in here)
    if silent or list(nodes.values()).count(Role.DECODE) > 1:
        return None, None
    return sum(gain.kv.get(to_decode, 0) for _, gain in gained), sum(gain.kv.get(to_prefill, 0) for _, gain in gained)


@dataclass(frozen=True, slots=True)
class _Gain:
    read: int
    written: int
    kv: dict[str, int]


def _gain(engine: EngineStats, before: ClusterStats) -> _Gain:
    """Since ``before``; all of it where the engine's process is a new one."""
    old = next((one for one in before.engines if one.engine_id == engine.engine_id), None)
    if old is None or old.storage_read_bytes > engine.storage_read_bytes:
        return _Gain(engine.storage_read_bytes, engine.storage_write_bytes, dict(engine.kv_transfer_bytes))
    return _Gain(
        engine.storage_read_bytes - old.storage_read_bytes,
        engine.storage_write_bytes - old.storage_write_bytes,
        {name: moved - old.kv_transfer_bytes.get(name, 0) for name, moved in engine.kv_transfer_bytes.items()},
    )


@asynccontextmanager
async def watching_nics(spec: TestbedSpec, service: Service) -> AsyncIterator[NicWatch]:
    """Samples from here to the end of the block, the last time when the storage NICs are at rest: a write outlives its
    request, and half of one is in the kernel's count alone.
    """
    watch, start_s = NicWatch(spec), time.monotonic()

    async def sample() -> None:
        nics = await asyncio.to_thread(read_nics, spec)
        watch.samples.append((time.monotonic() - start_s, nics))

    async def both_ends() -> None:
        watch.stats.append(await service.stats())
        watch.cpu_s.append(await asyncio.to_thread(cpu_seconds, spec))

    async def keep_sampling() -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            await sample()

    await both_ends()
    await sample()
    task = asyncio.create_task(keep_sampling())
    try:
        yield watch
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    async with asyncio.timeout(_SETTLE_S):
        while (await service.stats()).num_running_requests:  # noqa: ASYNC110  (nothing says when)
            await asyncio.sleep(_POLL_S)
    with contextlib.suppress(TimeoutError):  # then with what is still under way
        async with asyncio.timeout(_SETTLE_S):
            await _until_at_rest(partial(asyncio.to_thread, read_nics, spec))
    await sample()
    await both_ends()


async def _until_at_rest(read: Callable[[], Awaitable[Sequence[NicCounters]]]) -> None:
    """No storage NIC has moved anything to speak of for a while."""
    before = await read()
    while True:
        await asyncio.sleep(_REST_S)
        now = await read()
        if not any(_has_moved(*pair) for pair in zip(before, now, strict=True)):
            return
        before = now


def _has_moved(before: NicCounters, now: NicCounters) -> bool:
    moved = now.rx_bytes + now.tx_bytes - before.rx_bytes - before.tx_bytes
    return now.nic == STORAGE_NIC and moved > _REST_BYTES


def cpu_seconds(spec: TestbedSpec) -> dict[str, float]:
    """CPU time so far of the processes that are on each host now, kernel's share included."""
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    hosts = {spec.namespace(host): host for host in spec.hosts}
    out = dict.fromkeys(spec.hosts, 0.0)
    for pid, namespace in processes_in(hosts).items():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            out[hosts[namespace]] += (int(fields[11]) + int(fields[12])) * tick_s  # proc(5): utime, stime, after comm
    return out


def _rate_mbps(spec: TestbedSpec, nic: NicCounters) -> float | None:
    """None: unlimited."""
    if nic.nic != STORAGE_NIC:
        return spec.compute_nic_mbps
    return spec.storage_nic_mbps if spec.has_compute(nic.host) else None
