"""When memory is at rest: after a transfer that did not succeed, once its peer is removed where its bytes arrive.

NIXL only, between processes and over TCP, where an error at one end says nothing about the other.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.listening import listening
from tests.traffic import transport_process
from tests.traffic.transport_process import NUM_UNITS, UNIT_BYTES, make_region

from dualpath.cluster.ucx_network import within_process
from dualpath.core.errors import ConfigError, PeerLostError, TransferError
from dualpath.core.ids import PeerId
from dualpath.store.nixl_api import nixl_api
from dualpath.traffic.contract import Op, Region, TransferState
from dualpath.traffic.nixl_transport import NixlTransport

try:
    nixl_api()
except ConfigError as reason:
    pytest.skip(str(reason), allow_module_level=True)

THERE = PeerId("there.1")
OURS = 170  # every byte of our memory; all of theirs are 0
REST = np.arange(1, NUM_UNITS, dtype=np.int32)
FIRST = np.array([0], dtype=np.int32)
_numbers = itertools.count(1)


@dataclass
class Far:
    process: subprocess.Popen[str]
    metadata: bytes

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def ask(self, command: str) -> str:
        self.tell(command)
        return self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@dataclass
class Near:
    transport: NixlTransport
    region: Region

    @property
    def name(self) -> PeerId:
        return self.transport.peer_id

    def begin(self, op: Op, units: np.ndarray, peer: PeerId = THERE) -> object:
        return self.transport.post(op, peer, "staging", units, "staging", units)

    def wait(self, handle: object) -> TransferState:
        end_s = time.monotonic() + 30
        while (state := self.transport.poll(handle)) is TransferState.IN_PROGRESS:
            self.transport.progress()
            assert time.monotonic() < end_s, "the transfer never ends"
        return state

    def push_on(self, handle: object) -> None:
        """Send what the sockets take."""
        for _ in range(2000):
            assert self.transport.poll(handle) is TransferState.IN_PROGRESS


def start_far(name: str) -> Far:
    process = subprocess.Popen(
        [sys.executable, transport_process.__file__, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(transport_process.__file__).parents[2] / "src")},
    )
    assert process.stdout is not None
    return Far(process, bytes.fromhex(process.stdout.readline()))


def make_near(ucx: dict[str, str] | None = None) -> Near:
    near = Near(NixlTransport(PeerId(f"here.{next(_numbers)}"), ("UCX",), ucx), make_region(OURS))
    near.transport.register(near.region)
    return near


@pytest.fixture(scope="module")
def tcp() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCX_TLS", "tcp")
        patch.setenv("UCX_NET_DEVICES", "lo")
        yield


@pytest.fixture(scope="module")
def process(tcp: None) -> Iterator[Far]:
    far = start_far(THERE)
    yield far
    far.stop()


@pytest.fixture
def far(process: Far) -> Far:
    assert process.ask("clear") == "ok"
    return process


@pytest.fixture
def near(far: Far) -> Iterator[Near]:
    """Knows the far end, is known to it, and has pushed a first unit; the far end does nothing now."""
    near = make_near()
    near.transport.add_peer(far.metadata)
    assert far.ask("peer " + near.transport.metadata().hex()) == "ok"
    assert far.ask("serve") == "ok"
    first = near.begin(Op.PUSH, FIRST)
    assert near.wait(first) is TransferState.DONE
    assert near.transport.release(first)
    assert far.ask(f"count {OURS}") == str(UNIT_BYTES)
    yield near
    near.transport.close()


def cut_connections(_: Near) -> None:
    """As a network that breaks: what the far end's kernel has already is still there to be read."""
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:
        with suppress(OSError), socket.socket(fileno=os.dup(number)) as connection:
            if connection.family == socket.AF_INET and connection.getpeername():
                connection.shutdown(socket.SHUT_RDWR)


def remove_there(near: Near) -> None:
    near.transport.remove_peer(THERE)


@pytest.mark.parametrize("end", [cut_connections, remove_there])
def test_once_the_target_has_removed_the_peer_nothing_of_it_is_written_any_more(
    far: Far, near: Near, end: Callable[[Near], None]
) -> None:
    push = near.begin(Op.PUSH, REST)
    near.push_on(push)
    end(near)
    assert near.wait(push) is TransferState.FAILED
    assert isinstance(near.transport.failure(push), TransferError)
    assert near.transport.release(push)
    assert far.ask(f"remove {near.name}") == "ok"
    written = far.ask(f"count {OURS}")
    for _ in range(3):
        near.transport.progress()
        assert far.ask("progress 2000") == "ok"
    assert far.ask(f"count {OURS}") == written


def test_what_a_failed_push_still_writes_the_target_sees_only_before_that(far: Far, near: Near) -> None:
    """Why it has to remove the peer: an error here says nothing about its memory."""
    push = near.begin(Op.PUSH, REST)
    near.push_on(push)
    cut_connections(near)
    assert near.wait(push) is TransferState.FAILED
    before = int(far.ask(f"count {OURS}"))
    assert far.ask("progress 2000") == "ok"
    assert int(far.ask(f"count {OURS}")) > before


def test_once_we_have_removed_the_peer_nothing_of_our_pulls_is_written_any_more(far: Far, near: Near) -> None:
    pull = near.begin(Op.PULL, REST)
    near.push_on(pull)
    assert far.ask("progress 2") == "ok"
    near.transport.poll(pull)
    assert not near.transport.release(pull)
    near.transport.remove_peer(THERE)
    assert near.transport.poll(pull) is TransferState.FAILED
    assert isinstance(near.transport.failure(pull), PeerLostError)
    assert near.transport.release(pull)
    near.region.storage.fill_(OURS)
    far.tell("progress 2000")
    for _ in range(2000):
        near.transport.progress()
    assert far.answer() == "ok"
    assert torch.all(near.region.storage == OURS)


def test_a_peer_that_has_removed_us_is_not_written_any_more_until_it_adds_us_again(far: Far, near: Near) -> None:
    push = near.begin(Op.PUSH, REST)
    near.push_on(push)
    assert far.ask(f"remove {near.name}") == "ok"
    assert near.wait(push) is TransferState.FAILED
    assert near.transport.release(push)
    near.transport.progress()
    with pytest.raises(PeerLostError):
        near.begin(Op.PUSH, FIRST)
    assert far.ask("peer " + near.transport.metadata().hex()) == "ok"
    assert far.ask("serve") == "ok"
    near.transport.add_peer(far.metadata)
    again = near.begin(Op.PUSH, REST)
    assert near.wait(again) is TransferState.DONE
    assert far.ask(f"count {OURS}") == str(NUM_UNITS * UNIT_BYTES)


def test_removing_a_peer_disturbs_no_other(far: Far, near: Near) -> None:
    other = make_near()
    other.transport.add_peer(far.metadata)
    assert far.ask("serve") == "ok"
    assert other.wait(other.begin(Op.PUSH, FIRST)) is TransferState.DONE
    assert far.ask("count 0") == str((NUM_UNITS - 1) * UNIT_BYTES)
    pull = other.begin(Op.PULL, REST)
    other.push_on(pull)
    assert far.ask(f"remove {near.name}") == "ok"
    assert far.ask("serve") == "ok"
    assert other.wait(pull) is TransferState.DONE
    assert int((other.region.storage == 0).sum()) == (NUM_UNITS - 1) * UNIT_BYTES
    other.transport.close()


def test_peers_are_added_and_removed_on_either_side_again_and_again_and_leave_nothing(far: Far, near: Near) -> None:
    def descriptors() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{far.process.pid}/fd"))

    failures: list[TransferError] = []  # as futures keep them: they must not keep a connection
    before, num_turns = descriptors(), 20
    for turn in range(num_turns):
        push = near.begin(Op.PUSH, REST)
        near.push_on(push)
        if turn % 3 != 1:
            near.transport.remove_peer(THERE)
        if turn % 3 != 0:
            assert far.ask(f"remove {near.name}") == "ok"
        assert near.wait(push) is TransferState.FAILED
        failures.append(near.transport.failure(push))
        assert near.transport.release(push)
        near.transport.remove_peer(THERE)
        near.transport.add_peer(far.metadata)
        if turn % 2:
            assert far.ask("peer " + near.transport.metadata().hex()) == "ok"
        assert far.ask("serve") == "ok"
        assert near.wait(near.begin(Op.PUSH, FIRST)) is TransferState.DONE
        assert far.ask("progress 1") == "ok"
    # UCX needs one connection or two each way, by chance; what is left behind would be one at least in every turn.
    assert all(now < then + num_turns / 2 for now, then in zip(descriptors(), before, strict=True))


def test_a_transfer_with_a_peer_that_has_not_answered_yet_ends_with_its_removal(far: Far) -> None:
    near = make_near()
    near.transport.add_peer(far.metadata)
    push = near.begin(Op.PUSH, FIRST)
    assert near.transport.poll(push) is TransferState.IN_PROGRESS
    near.transport.remove_peer(THERE)
    assert near.transport.poll(push) is TransferState.FAILED
    assert near.transport.release(push)
    assert far.ask("progress 2000") == "ok"
    near.transport.close()
    assert far.ask(f"count {OURS}") == "0"


def test_a_transfer_with_a_peer_that_dies_before_it_answers_fails(tcp: None) -> None:
    far, near = start_far("dying.1"), make_near()
    near.transport.add_peer(far.metadata)
    push = near.begin(Op.PUSH, FIRST, PeerId("dying.1"))
    near.push_on(push)
    far.stop()
    assert near.wait(push) is TransferState.FAILED
    assert isinstance(near.transport.failure(push), PeerLostError)
    near.transport.close()


def test_the_same_name_with_other_memory_is_not_the_same_peer(near: Near) -> None:
    stranger = NixlTransport(THERE, ("UCX",))
    with pytest.raises(TransferError, match="not the same peer"):
        near.transport.add_peer(stranger.metadata())
    stranger.close()


def test_a_peer_whose_process_is_gone_cannot_be_added(tcp: None) -> None:
    far = start_far("gone.1")
    far.stop()
    near = make_near()
    with pytest.raises(PeerLostError):
        near.transport.add_peer(far.metadata)
    near.transport.close()


def test_an_answer_that_was_under_way_does_not_undo_a_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = make_near(), make_near()
    here.transport.add_peer(there.transport.metadata())
    there.transport.add_peer(here.transport.metadata())
    hear, late = here.transport._hellos.hear, []
    monkeypatch.setattr(here.transport._hellos, "hear", lambda: late.extend(hear()) or [])
    for _ in range(2000):  # there hears of us, and answers; we have not read what it said
        here.transport.progress()
        there.transport.progress()
    assert [hello.seen for _, hello in late] == [0, 1]
    there.transport.remove_peer(here.name)
    monkeypatch.setattr(here.transport._hellos, "hear", lambda: [late.pop(0)] if late else hear())
    for _ in range(2000):
        here.transport.progress()
        there.transport.progress()
    with pytest.raises(PeerLostError):
        here.begin(Op.PUSH, FIRST, there.name)
    here.transport.close()
    there.transport.close()


def test_a_peer_that_leaves_before_it_can_be_reached_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = make_near(), make_near()
    monkeypatch.setattr(there.transport._hellos, "hear", lambda: there.transport.agent.get_new_notifs() and [])
    here.transport.add_peer(there.transport.metadata())
    there.transport.add_peer(here.transport.metadata())
    there.transport.remove_peer(here.name)
    waiting = here.begin(Op.PUSH, FIRST, there.name)
    end_s = time.monotonic() + 30
    while here.transport.poll(waiting) is TransferState.IN_PROGRESS:
        there.transport.progress()
        assert time.monotonic() < end_s, "the transfer never ends"
    assert isinstance(here.transport.failure(waiting), PeerLostError)
    here.transport.close()
    there.transport.close()


@pytest.fixture
def ucx(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name in ("UCX_TLS", "UCX_NET_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return within_process(os.environ, on_cuda=False)


def test_in_one_process_a_closed_peer_is_neither_written_nor_waited_for(ucx: dict[str, str]) -> None:
    """Without a port UCX cannot tell that it has gone, and would write where its memory was."""
    here, there = make_near(ucx), make_near(ucx)
    there.region.storage.zero_()
    here.transport.add_peer(there.transport.metadata())
    first, early = (here.begin(Op.PUSH, FIRST, there.name) for _ in range(2))
    while here.transport.poll(first) is TransferState.IN_PROGRESS:
        there.transport.progress()
    there.transport.close()
    with pytest.raises(PeerLostError):
        here.begin(Op.PUSH, REST, there.name)
    assert here.transport.poll(early) is not TransferState.IN_PROGRESS
    here.transport.close()
    assert int((there.region.storage == OURS).sum()) == UNIT_BYTES


def test_in_one_process_nothing_listens(ucx: dict[str, str]) -> None:
    before = listening(os.getpid())
    near = make_near(ucx)
    assert listening(os.getpid()) == before
    near.transport.close()
