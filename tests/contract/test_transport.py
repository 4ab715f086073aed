"""Every transport moves exactly the named units, both ways, and says honestly how a transfer stands."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.traffic import peer_process
from tests.traffic.rig import DECODE_PEER, GEOMETRY, PREFILL, PREFILL_PEER, UNIT_BYTES, Engine, make_engine, make_store

from dualpath.cluster.ucx_network import within_process
from dualpath.core.errors import PeerLostError, TransferError
from dualpath.core.ids import PeerId
from dualpath.core.plan import Role
from dualpath.core.runtime import SystemRuntime
from dualpath.traffic.contract import Op, TransferState, Transport, Units
from dualpath.traffic.fake_transport import FakeFabric
from dualpath.traffic.local_transport import LocalNetwork
from dualpath.traffic.nixl_transport import NixlTransport
from dualpath.traffic.staging import Staging, device_region

NUM_SLOTS = 6
NUM_UNITS = NUM_SLOTS * GEOMETRY.num_layers


@dataclass
class End:
    """One transport with a staging region (units with gaps between slots) and a device region (units without)."""

    transport: Transport
    staging: Staging = field(default_factory=lambda: Staging(GEOMETRY, NUM_SLOTS))
    device: torch.Tensor = field(default_factory=lambda: torch.zeros(NUM_UNITS, UNIT_BYTES, dtype=torch.uint8))

    def __post_init__(self) -> None:
        self.transport.register(self.staging.region)
        self.transport.register(device_region(self.device, UNIT_BYTES))

    def unit(self, unit: int) -> torch.Tensor:
        """A staging unit's bytes, writable."""
        start = int(self.staging.region.addresses[unit]) - self.staging.region.storage.data_ptr()
        return self.staging.region.storage[start : start + UNIT_BYTES]


@dataclass
class Pair:
    near: End
    far: End

    def run(self, op: Op, local: Units, remote: Units, region: str = "staging") -> TransferState:
        handle = self.near.transport.post(op, DECODE_PEER, "device", local, region, remote)
        end_s = time.monotonic() + 10
        while (state := self.near.transport.poll(handle)) is TransferState.IN_PROGRESS:
            self.far.transport.progress()
            assert time.monotonic() < end_s, "the transfer never ends"
        assert self.near.transport.release(handle)
        return state


def units(*numbers: int) -> Units:
    return np.array(numbers, dtype=np.int32)


@pytest.fixture(scope="module", params=["fake", "local", "nixl", "nixl without a port"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    makers: dict[str, Any] = {
        "fake": FakeFabric().transport,
        "local": LocalNetwork(SystemRuntime()).transport,
        "nixl": NixlTransport,
        "nixl without a port": partial(NixlTransport, ucx=within_process({}, on_cuda=False)),
    }
    make = makers[request.param]
    pair = Pair(End(make(PREFILL_PEER)), End(make(DECODE_PEER)))
    assert pair.near.transport.add_peer(pair.far.transport.metadata()) == DECODE_PEER
    yield pair
    pair.near.transport.close()
    pair.far.transport.close()


@given(
    st.lists(st.tuples(st.integers(0, NUM_UNITS - 1), st.integers(0, NUM_UNITS - 1)), min_size=1).map(
        lambda pairs: (list(dict(pairs).keys()), list(dict(pairs).values()))
    )
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_pull_brings_exactly_the_named_units(pair: Pair, sides: tuple[list[int], list[int]]) -> None:
    local, remote = sides
    for unit in range(NUM_UNITS):
        pair.far.unit(unit)[:] = unit + 1
    pair.near.device.zero_()
    assert pair.run(Op.PULL, units(*local), units(*remote)) is TransferState.DONE
    expected = torch.zeros_like(pair.near.device)
    for mine, theirs in zip(local, remote, strict=True):
        expected[mine] = theirs + 1
    assert torch.equal(pair.near.device, expected)


@given(st.permutations(range(NUM_UNITS)), st.integers(1, NUM_UNITS))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_push_writes_exactly_the_named_units(pair: Pair, order: list[int], count: int) -> None:
    for unit in range(NUM_UNITS):
        pair.far.unit(unit)[:] = 0
        pair.near.device[unit] = unit + 1
    local, remote = order[:count], order[::-1][:count]
    assert pair.run(Op.PUSH, units(*local), units(*remote)) is TransferState.DONE
    expected = dict(zip(remote, local, strict=True))
    for unit in range(NUM_UNITS):
        assert torch.all(pair.far.unit(unit) == (expected[unit] + 1 if unit in expected else 0))


def test_the_gaps_between_slots_are_never_touched(pair: Pair) -> None:
    for view in (pair.far.staging.object_view(slot) for slot in range(NUM_SLOTS)):
        view[:16] = b"header of a slot"
    pair.near.device.fill_(9)
    every = np.arange(NUM_UNITS, dtype=np.int32)
    assert pair.run(Op.PUSH, every, every) is TransferState.DONE
    assert all(bytes(pair.far.staging.object_view(slot)[:16]) == b"header of a slot" for slot in range(NUM_SLOTS))


def test_device_regions_reach_each_other(pair: Pair) -> None:
    pair.far.device.copy_(torch.randint(0, 256, pair.far.device.shape, dtype=torch.uint8))
    assert pair.run(Op.PULL, units(0, 1, 5), units(4, 2, 3), region="device") is TransferState.DONE
    assert torch.equal(pair.near.device[[0, 1, 5]], pair.far.device[[4, 2, 3]])


def test_learning_a_peer_again_changes_nothing(pair: Pair) -> None:
    assert pair.near.transport.add_peer(pair.far.transport.metadata()) == DECODE_PEER
    pair.far.unit(3)[:] = 77
    assert pair.run(Op.PULL, units(0), units(3)) is TransferState.DONE
    assert torch.all(pair.near.device[0] == 77)


def test_units_that_the_peer_does_not_have_are_refused(pair: Pair) -> None:
    with pytest.raises(TransferError):
        pair.near.transport.post(Op.PULL, DECODE_PEER, "device", units(0), "staging", units(NUM_UNITS))
    with pytest.raises(TransferError):
        pair.near.transport.post(Op.PULL, DECODE_PEER, "device", units(0), "elsewhere", units(0))


def test_strangers_and_nonsense_are_refused(pair: Pair) -> None:
    with pytest.raises(PeerLostError):
        pair.near.transport.post(Op.PULL, PeerId("nobody"), "device", units(0), "staging", units(0))
    with pytest.raises(TransferError, match="not a peer's metadata"):
        pair.near.transport.add_peer(b"\xc1nonsense")
    pair.near.transport.remove_peer(PeerId("nobody"))


def test_a_removed_peer_can_come_back(pair: Pair) -> None:
    assert DECODE_PEER in pair.near.transport.peers
    pair.near.transport.remove_peer(DECODE_PEER)
    assert DECODE_PEER not in pair.near.transport.peers
    with pytest.raises(PeerLostError):
        pair.near.transport.post(Op.PULL, DECODE_PEER, "device", units(0), "staging", units(0))
    pair.near.transport.add_peer(pair.far.transport.metadata())
    assert pair.run(Op.PULL, units(0), units(0)) is TransferState.DONE


def test_whoever_the_other_side_has_removed_moves_nothing_there_until_both_meet_anew(pair: Pair) -> None:
    assert pair.run(Op.PUSH, units(0), units(0)) is TransferState.DONE
    assert PREFILL_PEER in pair.far.transport.peers
    pair.far.transport.remove_peer(PREFILL_PEER)
    assert PREFILL_PEER not in pair.far.transport.peers
    pair.far.unit(1)[:] = 3
    with pytest.raises(PeerLostError):
        pair.near.transport.post(Op.PUSH, DECODE_PEER, "device", units(0), "staging", units(1))
    assert torch.all(pair.far.unit(1) == 3)
    pair.near.transport.remove_peer(DECODE_PEER)
    pair.near.transport.add_peer(pair.far.transport.metadata())
    assert pair.run(Op.PUSH, units(0), units(1)) is TransferState.DONE


# --- peers in other processes: NIXL only ------------------------------------------------------------------------------


@dataclass
class Far:
    """A decode engine in another process, and our prefill engine that knows it."""

    process: subprocess.Popen[str]
    near: Engine

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@pytest.fixture(params=["fastest", "tcp"])
def far(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Far]:
    if request.param == "tcp":
        monkeypatch.setenv("UCX_TLS", "tcp")
    source = str(Path(peer_process.__file__).parents[2] / "src")
    process = subprocess.Popen(
        [sys.executable, peer_process.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    near = make_engine(PREFILL, Role.PREFILL, NixlTransport(PREFILL_PEER), make_store("memory", tmp_path))
    assert process.stdout is not None
    near.manager.add_peer(bytes.fromhex(process.stdout.readline()))
    far = Far(process, near)
    assert far.ask("peer " + near.manager.metadata().hex()) == "ok"
    assert far.ask("expect") == "ok"
    yield far
    process.kill()
    process.wait()
    near.manager.close()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def test_bytes_cross_processes_both_ways_until_the_peer_is_killed(far: Far) -> None:
    manager, device = far.near.manager, far.near.device
    local, remote = units(0, 5, 9, 10), units(23, 1, 2, 16)
    assert manager.pull(DECODE_PEER, "device", local, "staging", remote).future.result(10) == 4 * UNIT_BYTES
    for mine, theirs in zip(local, remote, strict=True):
        assert torch.all(device[mine] == theirs)
    device.fill_(200)
    assert manager.push(DECODE_PEER, "device", local, "staging", remote).future.result(10) == 4 * UNIT_BYTES
    expected = [200 if unit in remote else unit for unit in range(8 * GEOMETRY.num_layers)]
    assert far.ask("sums") == " ".join(map(str, expected))
    far.process.kill()
    far.process.wait()
    with pytest.raises(TransferError):
        manager.pull(DECODE_PEER, "device", local, "staging", remote, deadline_s=5.0).future.result(10)
