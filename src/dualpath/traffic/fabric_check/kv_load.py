"""KV's traffic on one rank: the engines' own transport pushes Layer Blocks to the next rank, as many as go.

In a process of its own: polling for transfers in the process that times collectives would make those wait for Python.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from dualpath.core.errors import DualPathError, TransferError
from dualpath.core.ids import PeerId
from dualpath.traffic.contract import Op, TransferState
from dualpath.traffic.fabric_check.plan import UNIT_BYTES, UNITS_PER_TRANSFER
from dualpath.traffic.nixl_transport import NixlTransport
from dualpath.traffic.staging import DEVICE, device_region

_IDLE_POLL_S = 1e-3
_BUSY_POLL_S = 1e-4


class KvLoad:
    """The process, seen from the rank. Every call has the deadline; raises DualPathError when it passes."""

    def __init__(self, rank: int, num_transfers: int, deadline_s: float) -> None:
        context = mp.get_context("spawn")
        self._link, other = context.Pipe()
        self._moved = context.RawValue("q", 0)  # one writer; a lock is a file that a kill would leave
        self._deadline_s = deadline_s
        self._process = context.Process(
            target=_run, args=(other, self._moved, rank, num_transfers, deadline_s), daemon=True
        )
        self._process.start()
        other.close()

    def metadata(self) -> bytes:
        """What the previous rank needs to push here. Once, first."""
        metadata: bytes = self._answer()
        return metadata

    def connect(self, metadata_of_next: bytes) -> None:
        self._ask(("connect", metadata_of_next))

    def start(self) -> None:
        """Begin to push, and return when bytes arrive."""
        before = self._moved.value
        self._ask(("start", None))
        end_s = time.monotonic() + self._deadline_s
        while self._moved.value == before:
            if time.monotonic() > end_s or not self._process.is_alive():
                raise DualPathError(f"KV does not move: not a byte arrived within {self._deadline_s:g} s")
            time.sleep(0.01)

    def stop(self) -> None:
        """End what is in flight. The process stays, so that others' transfers to it advance."""
        self._ask(("stop", None))

    @property
    def moved_bytes(self) -> int:
        """That have arrived at the next rank since the beginning."""
        moved: int = self._moved.value
        return moved

    def close(self) -> None:
        self._link.close()  # which ends the process
        self._process.join(2.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, question: tuple[str, bytes | None]) -> None:
        with contextlib.suppress(OSError):
            self._link.send(question)
        self._answer()

    def _answer(self) -> Any:
        try:
            if not self._link.poll(self._deadline_s):
                raise DualPathError(f"the KV load did not answer within {self._deadline_s:g} s")
            answer = self._link.recv()
        except (EOFError, OSError):
            raise DualPathError("the KV load's process ended") from None
        if isinstance(answer, str):
            raise DualPathError(answer)
        return answer


def _run(link: Connection, moved: Any, rank: int, num_transfers: int, deadline_s: float) -> None:
    """The process. Ends when the rank does, or closes the link."""
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        try:
            _Pusher(link, moved, rank, num_transfers, deadline_s).run()
        except DualPathError as error:
            link.send(f"KV load of rank {rank}: {error}")


class _Pusher:
    def __init__(self, link: Connection, moved: Any, rank: int, num_transfers: int, deadline_s: float) -> None:
        self._link, self._moved, self._deadline_s = link, moved, deadline_s
        self._transport = NixlTransport(PeerId(f"kv{rank}"), ("UCX",))
        memory = torch.zeros(num_transfers * UNITS_PER_TRANSFER * UNIT_BYTES, dtype=torch.uint8)
        self._transport.register(device_region(memory, UNIT_BYTES))
        units = np.arange(num_transfers * UNITS_PER_TRANSFER, dtype=np.int32)
        self._free = list(units.reshape(num_transfers, UNITS_PER_TRANSFER))
        self._flying: list[tuple[Any, Any, float]] = []  # handle, its units, when it was posted
        self._peer: PeerId | None = None
        self._wanted = False
        self._on_rest: Callable[[], None] | None = None

    def run(self) -> None:
        self._link.send(self._transport.metadata())
        while True:
            self._listen()
            self._transport.progress()
            ended = self._collect()
            if self._wanted:
                self._post()
            elif not self._flying and self._on_rest is not None:
                self._on_rest()
                self._on_rest = None
            if not ended:
                time.sleep(_BUSY_POLL_S if self._flying else _IDLE_POLL_S)

    def _listen(self) -> None:
        if not self._link.poll(0):
            return
        verb, argument = self._link.recv()
        if verb == "connect":
            self._peer = self._transport.add_peer(argument)
        self._wanted = verb == "start"
        if verb == "stop":
            self._on_rest = lambda: self._link.send(True)
        else:
            self._link.send(True)

    def _collect(self) -> int:
        """Count what has arrived. Raises TransferError for a failed or overdue transfer."""
        ended, flying = 0, []
        for handle, units, posted_s in self._flying:
            state = self._transport.poll(handle)
            if state is TransferState.FAILED:
                raise self._transport.failure(handle)
            if state is TransferState.DONE:
                self._transport.release(handle)
                self._free.append(units)
                self._moved.value += len(units) * UNIT_BYTES
                ended += 1
            elif time.monotonic() - posted_s > self._deadline_s:
                raise TransferError(f"a transfer did not end within {self._deadline_s:g} s")
            else:
                flying.append((handle, units, posted_s))
        self._flying = flying
        return ended

    def _post(self) -> None:
        assert self._peer is not None
        while self._free:
            units = self._free.pop()
            handle = self._transport.post(Op.PUSH, self._peer, DEVICE, units, DEVICE, units)
            self._flying.append((handle, units, time.monotonic()))
