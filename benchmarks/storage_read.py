"""How much of NIXL's read speed is left after our bookkeeping and verification: files in the page cache, one process.

``nixl``: open all files, one transfer handle with all descriptors, close; nothing is checked. ``store``: the same
blocks through FileIo, every one verified by a hash thread while the next arrive, as an engine does. ``unverified``:
FileIo alone. Variants take turns, so that the machine's mood hits all alike.

    python benchmarks/storage_read.py --num-blocks 128 --repetitions 15
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.core.runtime import SystemRuntime
from dualpath.store.contract import IoRequest, IoState, IoTicket, StoreIo
from dualpath.store.files.store import FileStore
from dualpath.store.header import object_bytes, verify, write_header
from dualpath.store.nixl_api import Agent, build_agent

NAMESPACE = b"benchmark-digest"
IN_FLIGHT, SUBMITTED_TOGETHER, PAUSE_S = 64, 16, 200e-6  # dualpath.traffic's


@dataclass
class Setup:
    """Blocks on storage, an agent and I/O, and registered staging memory with a slot for each block."""

    store: FileStore
    agent: Agent
    io: StoreIo
    staging: torch.Tensor  # [blocks, object bytes] uint8
    keys: list[BlockKey]

    @property
    def requests(self) -> list[IoRequest]:
        size = self.staging.shape[1]
        return [IoRequest(key, slot.data_ptr(), size) for key, slot in zip(self.keys, self.staging, strict=True)]


def prepare(root: Path, num_blocks: int, geometry: KvGeometry) -> Setup:
    store = FileStore(root, NAMESPACE, geometry)
    agent = build_agent("storage-read")
    io = store.open_io(agent, SystemRuntime())
    staging = torch.randint(0, 256, (num_blocks, object_bytes(geometry)), dtype=torch.uint8)
    agent.register_memory(staging, backends=["POSIX"])
    keys = [BlockKey(number.to_bytes(16, "big")) for number in range(num_blocks)]
    for key, slot in zip(keys, staging, strict=True):
        write_header(memoryview(slot.numpy()), NAMESPACE, key, keys[0], geometry)
    setup = Setup(store, agent, io, staging, keys)
    run_to_end(io, io.submit_writes, setup.requests, lambda slot: None)
    return setup


def run_to_end(
    io: StoreIo,
    submit: Callable[[Sequence[IoRequest]], Sequence[IoTicket]],
    requests: Sequence[IoRequest],
    on_done: Callable[[int], None],
) -> None:
    """As an engine's traffic thread does: so many at once, a few more with each look, a pause where nothing moved."""
    queue, pending = list(enumerate(requests)), list[tuple[int, IoTicket]]()
    while queue or pending:
        batch = [queue.pop(0) for _ in range(min(len(queue), IN_FLIGHT - len(pending), SUBMITTED_TOGETHER))]
        tickets = submit([request for _, request in batch])
        pending.extend((slot, ticket) for (slot, _), ticket in zip(batch, tickets, strict=True))
        still = []
        for slot, ticket in pending:
            state = io.poll(ticket)
            if state is IoState.IN_PROGRESS:
                still.append((slot, ticket))
                continue
            assert state is IoState.DONE, ticket.error
            io.release(ticket)
            on_done(slot)
        if not batch and len(still) == len(pending):
            time.sleep(PAUSE_S)
        pending = still


def read_plain(setup: Setup) -> None:
    """What NIXL alone can do: no checks, no bounds."""
    agent, size = setup.agent, setup.staging.shape[1]
    fds = [os.open(setup.store.path_of(key), os.O_RDONLY) for key in setup.keys]
    files = agent.register_memory([(0, size, fd, "") for fd in fds], "FILE", backends=["POSIX"])
    local = agent.get_xfer_descs([(slot.data_ptr(), size, 0) for slot in setup.staging], "DRAM")
    remote = agent.get_xfer_descs([(0, size, fd) for fd in fds], "FILE")
    handle = agent.initialize_xfer("READ", local, remote, agent.name, b"", ["POSIX"])
    state = agent.transfer(handle)
    while state == "PROC":
        state = agent.check_xfer_state(handle)
    assert state == "DONE"
    agent.release_xfer_handle(handle)
    agent.deregister_memory(files, backends=["POSIX"])
    for fd in fds:
        os.close(fd)


def read_unverified(setup: Setup) -> None:
    run_to_end(setup.io, setup.io.submit_reads, setup.requests, lambda slot: None)


def read_verified(setup: Setup, pool: ThreadPoolExecutor, views: list[memoryview]) -> None:
    checks: list[Future[None]] = []

    def check(slot: int) -> None:
        checks.append(pool.submit(verify, views[slot], NAMESPACE, setup.keys[slot], setup.store.geometry))

    run_to_end(setup.io, setup.io.submit_reads, setup.requests, check)
    for future in checks:
        future.result()


def time_s(action: Callable[[], None]) -> float:
    start_s = time.perf_counter()
    action()
    return time.perf_counter() - start_s


def measure(setup: Setup, repetitions: int) -> dict[str, float]:
    """GB/s and the ratios we care for: of the medians, and of the quietest turns on a shared machine."""
    views = [memoryview(slot.numpy()) for slot in setup.staging]
    with ThreadPoolExecutor(1) as pool:
        variants: dict[str, Callable[[], None]] = {
            "nixl": lambda: read_plain(setup),
            "unverified": lambda: read_unverified(setup),
            "store": lambda: read_verified(setup, pool, views),
        }
        times_s: dict[str, list[float]] = {name: [] for name in variants}
        for repetition in range(repetitions + 2):
            for name, action in variants.items():
                took_s = time_s(action)
                if repetition >= 2:
                    times_s[name].append(took_s)
    total_bytes = setup.staging.numel()
    result = {}
    for kind, of in (("median", statistics.median), ("best", min)):
        speeds = {name: total_bytes / of(t) / 1e9 for name, t in times_s.items()}
        for name, speed in speeds.items():
            result[f"{name}_{kind}_gb_per_s"] = round(speed, 2)
        for name in ("unverified", "store"):
            result[f"{name}_{kind}_ratio"] = round(speeds[name] / speeds["nixl"], 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-blocks", type=int, default=128)
    parser.add_argument("--block-kib", type=int, default=2048, help="payload of one block in KiB")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--directory", default=None, help="where to put the files (default: a temporary directory)")
    options = parser.parse_args()
    geometry = KvGeometry(num_layers=8, block_tokens=64, bytes_per_token_layer=options.block_kib * 2)
    with tempfile.TemporaryDirectory(dir=options.directory) as root:
        setup = prepare(Path(root), options.num_blocks, geometry)
        result = measure(setup, options.repetitions)
        setup.io.close()
    print(json.dumps({"num_blocks": options.num_blocks, "block_bytes": geometry.full_block_bytes, **result}, indent=1))


if __name__ == "__main__":
    main()
