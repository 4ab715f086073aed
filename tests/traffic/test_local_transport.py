"""Engines of one process without NIXL: what a removed peer began is over, and a closed one is gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from dualpath.core.errors import PeerLostError, TransferError
from dualpath.core.ids import PeerId
from dualpath.core.runtime import SystemRuntime
from dualpath.traffic.contract import Op, Region, TransferState
from dualpath.traffic.local_transport import LocalNetwork, LocalTransport
from dualpath.traffic.staging import device_region

NEAR, FAR = PeerId("prefill0.1"), PeerId("decode0.1")
FIRST = np.array([0], dtype=np.int32)


@pytest.fixture
def ends() -> Iterator[tuple[LocalTransport, LocalTransport]]:
    network = LocalNetwork(SystemRuntime())
    near, far = network.transport(NEAR), network.transport(FAR)
    for end, value in ((near, 1), (far, 2)):
        end.register(device_region(torch.full((4, 64), value, dtype=torch.uint8), 64))
    near.add_peer(far.metadata())
    far.add_peer(near.metadata())
    yield near, far
    near.close()
    far.close()


def test_nothing_that_a_removed_peer_began_moves_any_more(ends: tuple[LocalTransport, LocalTransport]) -> None:
    near, far = ends
    is_copying, go_on = threading.Event(), threading.Event()
    copy = near._mover.copy

    def slow(*arguments: object) -> None:
        is_copying.set()
        assert go_on.wait(10)
        copy(*arguments)  # type: ignore[arg-type]

    near._mover.copy = slow  # type: ignore[method-assign, assignment]
    running = near.post(Op.PUSH, FAR, "device", FIRST, "device", FIRST)
    waiting = near.post(Op.PUSH, FAR, "device", FIRST, "device", FIRST + 1)
    assert is_copying.wait(10)
    removing = threading.Thread(target=far.remove_peer, args=(NEAR,))
    removing.start()
    assert not far.peers or removing.is_alive(), "it waits for the copy that runs"
    go_on.set()
    removing.join(10)
    assert near.poll(waiting) is not TransferState.IN_PROGRESS
    before = far.regions["device"].storage.clone()
    with pytest.raises(PeerLostError):
        near.post(Op.PUSH, FAR, "device", FIRST, "device", FIRST + 2)
    assert near.poll(running) is not TransferState.IN_PROGRESS
    assert torch.equal(far.regions["device"].storage, before)


def test_a_copy_that_fails_says_why(ends: tuple[LocalTransport, LocalTransport]) -> None:
    near, _ = ends

    def refuse(*_: object) -> None:
        raise OSError("no such memory")

    near._mover.copy = refuse  # type: ignore[method-assign, assignment]
    handle = near.post(Op.PULL, FAR, "device", FIRST, "device", FIRST)
    near._worker.close()
    assert near.poll(handle) is TransferState.FAILED
    assert "no such memory" in str(near.failure(handle))


def test_who_has_closed_is_gone(ends: tuple[LocalTransport, LocalTransport]) -> None:
    near, far = ends
    metadata = far.metadata()
    far.close()
    with pytest.raises(PeerLostError):
        near.post(Op.PULL, FAR, "device", FIRST, "device", FIRST)
    with pytest.raises(PeerLostError):
        near.add_peer(metadata)
    with pytest.raises(TransferError):
        near.add_peer(b"of NIXL")


def test_a_copy_that_begins_while_its_peer_removes_us_does_not(ends: tuple[LocalTransport, LocalTransport]) -> None:
    near, far = ends

    class Regions(dict[str, Region]):
        def __getitem__(self, name: str) -> Region:
            far.remove_peer(NEAR)  # after the first look at who is whose peer
            return super().__getitem__(name)

    near.regions = Regions(near.regions)
    before = far.regions["device"].storage.clone()
    with pytest.raises(PeerLostError, match="was removed"):
        near.post(Op.PUSH, FAR, "device", FIRST, "device", FIRST)
    near._worker.close()
    assert torch.equal(far.regions["device"].storage, before)
