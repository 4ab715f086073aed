"""CPU that each hop of a block takes, in seconds per GiB at either end, through the engines' own traffic managers.

Two engines, each in a process of its own as on two hosts, and an S3 server (rclone): storage -> staging and back
(files in the page cache, S3), between staging and the peer's staging by layer (UCX, ``UCX_TLS`` as set), staging ->
device. Every hop moves the same ``--blocks`` Full Blocks at a time, as a request does. CPU of all threads of a process
counts, and nothing else runs in it. For comparison, one memcpy of as much memory.

"verified": the same hop as ``[memory] verify = "all"`` has it, in turns with the plain one: what arrives on the device
is digested when it has arrived, what is pushed beside the push, a written block's header is there and is compared.

    UCX_TLS=tcp python benchmarks/cpu_per_gib.py --gib 1
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing as mp
import os
import resource
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey, EngineId, NodeId, PeerId
from dualpath.core.plan import Role
from dualpath.core.runtime import SystemRuntime
from dualpath.store.header import object_bytes
from dualpath.store.open import open_store
from dualpath.testbed.rollout_processes import find_rclone
from dualpath.traffic.contract import Transfer, Units
from dualpath.traffic.manager import TrafficManager
from dualpath.traffic.nixl_transport import NixlTransport
from dualpath.traffic.staging import DEVICE, STAGING
from dualpath.traffic.storage_nic import StorageNic

GIB = 1024**3
GEOMETRY = KvGeometry(num_layers=6, block_tokens=64, bytes_per_token_layer=8192)  # the demo model's
NAMESPACE = b"cpu-per-gib-----"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
DEADLINE_S = 60.0
PEER = PeerId("decode")


def own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def cpu_s_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def make_manager(name: str, role: Role, url: str, num_blocks: int) -> tuple[TrafficManager, list[int]]:
    store, clock = open_store(url, NAMESPACE, GEOMETRY), SystemRuntime()
    manager = TrafficManager(
        engine_id=EngineId(name),
        node_id=NodeId(name),
        role=role,
        geometry=GEOMETRY,
        namespace_digest=NAMESPACE,
        num_slots=num_blocks,
        num_write_slots=1,
        transport=NixlTransport(PeerId(name), ("UCX",)),
        open_io=lambda transport: store.open_io(transport.agent, clock),
        storage_nic=StorageNic(None, clock),
        runtime=clock,
    )
    manager.register_device(
        torch.zeros(num_blocks * GEOMETRY.num_layers, GEOMETRY.layer_block_bytes, dtype=torch.uint8)
    )
    manager.start()
    return manager, asyncio.run(manager.slots.acquire(num_blocks, 1.0))


def run_peer(link: Connection, url: str, num_blocks: int) -> None:
    """The other engine: takes part in transfers, and says how much CPU it has used whenever it is asked."""
    torch.set_num_threads(1)
    manager, _ = make_manager("decode", Role.DECODE, url, num_blocks)
    link.send(manager.metadata())
    manager.add_peer(link.recv())
    with manager.expecting_peers():
        link.send("ready")
        while link.recv() != "quit":
            link.send(own_cpu_s())
    manager.close()


@contextmanager
def s3_server(root: Path) -> Iterator[tuple[str, int]]:
    (root / "blocks").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark-secret")
    command = [find_rclone(), "serve", "s3", "--config", os.devnull, "--addr", address]
    command += ["--auth-key", "benchmark,benchmark-secret", str(root)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end_s = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(tuple(address.split(":")), 1).close()  # type: ignore[arg-type]
                break
            except OSError:
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.05)
        yield f"s3://blocks/kv?endpoint=http://{address}", process.pid
    finally:
        process.kill()
        process.wait()


def wait(transfers: list[Transfer[int]]) -> int:
    return sum(transfer.future.result(DEADLINE_S) for transfer in transfers)


class Hops:
    """Everything that a block's bytes go through, one engine's view; each method moves all blocks once."""

    def __init__(self, manager: TrafficManager, slots: list[int]) -> None:
        self.manager, self.slots = manager, slots
        self.keys = [BlockKey(number.to_bytes(16, "big")) for number in range(1, len(slots) + 1)]
        layers, per_layer = range(GEOMETRY.num_layers), len(slots)
        self.staging = [manager.staging_units(slots, layer) for layer in layers]
        self.device = [np.arange(per_layer, dtype=np.int32) + layer * per_layer for layer in layers]
        self.num_bytes = np.full(per_layer, GEOMETRY.layer_block_bytes)

    def write(self, verifies: bool = False) -> int:
        """Hashed once either way; the headers of the plain turn before are there."""
        root = BlockKey(bytes(16))
        blocks = [(key, root, slot) for key, slot in zip(self.keys, self.slots, strict=True)]
        return wait(self.manager.write_blocks(blocks, have_headers=verifies))

    def read(self) -> int:
        return wait(self.manager.read_blocks(list(zip(self.keys, self.slots, strict=True))))

    def copy(self, verifies: bool = False) -> int:
        pairs = list(zip(self.staging, self.device, strict=True))
        return wait([self.manager.copy(STAGING, u, DEVICE, d, self._digest(d, verifies)) for u, d in pairs])

    def pull(self, verifies: bool = False) -> int:
        """The peer's buffers are laid out as ours: the same slots, all of them."""
        pull, pairs = self.manager.pull, list(zip(self.staging, self.device, strict=True))
        return wait([pull(PEER, DEVICE, d, STAGING, u, None, self._digest(d, verifies)) for u, d in pairs])

    def push(self, verifies: bool = False) -> int:
        transfers, beside = [], []
        for units, device in zip(self.staging, self.device, strict=True):
            transfers.append(self.manager.push(PEER, DEVICE, device, STAGING, units))
            if (digest := self._digest(device, verifies)) is not None:
                beside.append(self.manager.checks.submit(digest))
        return wait(transfers) + wait(beside)

    def _digest(self, device: Units, verifies: bool) -> Callable[[], None] | None:
        if not verifies:
            return None

        def digest() -> None:
            self.manager.checks.digests(DEVICE, device, self.num_bytes)

        return digest


Cost = tuple[float, float, float]  # wall clock, own CPU, far CPU, in s/GiB
Move = Callable[[bool], int]
Far = tuple[Callable[[], float], str]


def measure(move: Callable[[], int], total_bytes: float, far_cpu_s: Callable[[], float]) -> Cost:
    move()  # connections, pages
    moved, begin_s, own_s, far_s = 0, time.perf_counter(), own_cpu_s(), far_cpu_s()
    while moved < total_bytes:
        moved += move()
    took = time.perf_counter() - begin_s, own_cpu_s() - own_s, far_cpu_s() - far_s
    wall_s, near_s, other_s = (GIB * seconds / moved for seconds in took)
    return wall_s, near_s, other_s


def medians(costs: list[Cost]) -> Cost:
    wall_s, near_s, other_s = (statistics.median(column) for column in zip(*costs, strict=True))
    return wall_s, near_s, other_s


def memcpy_s_per_gib(total_bytes: float) -> float:
    source = torch.zeros(64 << 20, dtype=torch.uint8)
    target = torch.ones_like(source)
    moved, begin_s = 0, own_cpu_s()
    while moved < total_bytes:
        target.copy_(source)
        moved += source.numel()
    return GIB * (own_cpu_s() - begin_s) / moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0, help="how much each hop moves")
    parser.add_argument("--blocks", type=int, default=32, help="Full Blocks of 3 MiB moved at a time")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each hop, plain and verified; medians count")
    parser.add_argument("--s3", action="store_true", help="S3 as well, from an rclone server")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    total = arguments.gib * GIB
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        file_url = f"file://{scratch}/kv"
        link, far_link = mp.Pipe()
        peer = mp.get_context("spawn").Process(
            target=run_peer, args=(far_link, file_url, arguments.blocks), daemon=True
        )
        peer.start()

        def peer_cpu_s() -> float:
            link.send("cpu")
            seconds: float = link.recv()
            return seconds

        by_file, slots = make_manager("prefill", Role.PREFILL, file_url, arguments.blocks)
        link.send(by_file.metadata())
        by_file.add_peer(link.recv())
        assert link.recv() == "ready"
        files = Hops(by_file, slots)
        none: Far = (lambda: 0.0, "")
        there: Far = (peer_cpu_s, "peer")
        rows: list[tuple[str, Move, Far]] = [
            ("staging -> file, checksummed", files.write, none),
            ("file -> staging, verified", lambda _: files.read(), none),
            ("peer's staging -> device, by layer", files.pull, there),
            ("device -> peer's staging, by layer", files.push, there),
            ("staging -> device, by layer", files.copy, none),
        ]
        if arguments.s3:
            (Path(scratch) / "s3").mkdir()
            s3_url, s3_pid = stack.enter_context(s3_server(Path(scratch) / "s3"))
            by_s3, s3_slots = make_manager("prefill-s3", Role.PREFILL, s3_url, arguments.blocks)
            stack.callback(by_s3.close)
            s3, server = Hops(by_s3, s3_slots), (lambda: cpu_s_of(s3_pid), "rclone")
            rows.insert(2, ("staging -> S3, checksummed", s3.write, server))
            rows.insert(3, ("S3 -> staging, verified", lambda _: s3.read(), server))
        ucx_tls = os.environ.get("UCX_TLS", "unset")
        print(f"{object_bytes(GEOMETRY) / 2**20:.2f} MiB blocks, {arguments.blocks} at a time; UCX_TLS={ucx_tls}")
        print(f"{'hop':<38}{'GB/s':>7}{'CPU s/GiB':>11}{'far end':>9}")
        print(f"{'one memcpy':<38}{'':>7}{memcpy_s_per_gib(total):>11.2f}")
        for name, move, far in rows:
            for label, line in turns(name, move, far, total, arguments.rounds).items():
                print(f"{label:<38}{line}")
        link.send("quit")
        by_file.close()
        peer.join(10)


def turns(name: str, move: Move, far: Far, total_bytes: float, rounds: int) -> dict[str, str]:
    """What a hop costs, plain and verified in turns."""
    costs: dict[bool, list[Cost]] = {False: [], True: []}
    for _ in range(rounds):
        for verifies, those in costs.items():
            those.append(measure(lambda v=verifies: move(v), total_bytes / rounds, far[0]))  # type: ignore[misc]
    lines = {}
    for verifies, those in costs.items():
        wall_s, near_s, other_s = medians(those)
        line = f"{GIB / wall_s / 1e9:>7.2f}{near_s:>11.3f}"
        lines["  verified" if verifies else name] = line + (f"{other_s:>9.3f}  {far[1]}" if far[1] else "")
    return lines


if __name__ == "__main__":
    main()
