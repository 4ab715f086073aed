"""The safeguards one by one, each as what takes it away: without it, a seed must find that something goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from dualpath.core.errors import DualPathError, TransferError
from dualpath.core.ids import PeerId
from dualpath.core.keys import root_key
from dualpath.engine.decode import DecodeEngine
from dualpath.engine.forward_digests import ForwardDigests
from dualpath.engine.integrity import Integrity
from dualpath.engine.layer_stream import WorkspaceStream
from dualpath.engine.remote.host import EngineServer
from dualpath.engine.roster import Roster
from dualpath.engine.sequence import Sequence as DecodeSequence
from dualpath.engine.staged import StagedReads
from dualpath.scheduler.blocks import WriteLedger
from dualpath.scheduler.holding import Hold
from dualpath.scheduler.job import Job
from dualpath.scheduler.patience import Patience
from dualpath.traffic import memory
from dualpath.traffic.jobs import Job as TrafficJob
from dualpath.traffic.peer_lane import PeerLane

Ablation = Callable[[], AbstractContextManager[Any]]


def _nothing(*_: Any, **__: Any) -> None:
    """In place of a safeguard."""


async def _nothing_async(*_: Any, **__: Any) -> None:
    """In place of a safeguard that is awaited."""


# -- bytes ------------------------------------------------------------------------------------------------------------


def _without_storage_checksums() -> AbstractContextManager[Any]:
    return patch.object(memory, "verify", _nothing)


def _without_comparing_history() -> AbstractContextManager[Any]:
    return patch.object(ForwardDigests, "compare", _nothing)


def _without_comparing_device_memory() -> AbstractContextManager[Any]:
    return patch.object(Integrity, "compare", _nothing)


# -- memory in use ----------------------------------------------------------------------------------------------------


def _late_transfers_give_their_slots_back() -> AbstractContextManager[Any]:
    abandon = TrafficJob.abandon

    def settle_at_once(self: TrafficJob, error: Exception) -> None:
        self.settle()
        abandon(self, error)

    return patch.object(TrafficJob, "abandon", settle_at_once)


def _failed_pushes_count_as_ended() -> AbstractContextManager[Any]:
    """As if an error said that no byte moves any more."""
    break_peer = PeerLane._break

    def settled(self: PeerLane, peer: PeerId, *rest: Any) -> TransferError | None:
        problem = break_peer(self, peer, *rest)
        self.peer_at_rest(peer)
        return problem

    return patch.object(PeerLane, "_break", settled)


def _decode_engines_remove_nobody() -> AbstractContextManager[Any]:
    return patch.object(DecodeEngine, "remove_peer", _nothing_async)


def _decode_slots_are_released_first() -> AbstractContextManager[Any]:
    async def drop_decode(self: Hold, prefill_gone: asyncio.Task[bool]) -> None:
        await self._releaser.release_decode(self, is_at_rest=True)

    return patch.object(Hold, "_drop_decode", drop_decode)


def _moved_slots_are_not_told() -> AbstractContextManager[Any]:
    move = StagedReads._move

    def silently(self: StagedReads, *arguments: Any) -> tuple[tuple[int, int], ...]:
        move(self, *arguments)
        return ()

    return patch.object(StagedReads, "_move", silently)


def _layers_load_before_the_last_but_one_has_left() -> AbstractContextManager[Any]:
    release = WorkspaceStream.release

    def early(self: WorkspaceStream, layer: int) -> None:
        follower = layer + self._num_workspaces
        if follower < self._num_layers and not self._started[follower].done():
            self._start_layer(follower)
        with patch.object(WorkspaceStream, "_start_layer", _nothing):
            release(self, layer)

    return patch.object(WorkspaceStream, "release", early)


def _device_blocks_are_freed_while_in_use() -> AbstractContextManager[Any]:
    free = Roster.free_if_unused

    def at_once(self: Roster, seq: DecodeSequence) -> bool:
        num_copies, stepping = seq.num_copies, self.stepping
        seq.num_copies, self.stepping = 0, []
        try:
            return free(self, seq)
        finally:
            seq.num_copies, self.stepping = num_copies, stepping

    return patch.object(Roster, "free_if_unused", at_once)


def _write_slots_are_freed_before_the_write() -> AbstractContextManager[Any]:
    """By forgetting that a transfer holds its slots."""
    return patch.object(memory.EngineMemory, "hold_slots", lambda *_: [])


# -- blocks and their index -------------------------------------------------------------------------------------------


def _failed_writes_stay_announced() -> AbstractContextManager[Any]:
    return patch.object(WriteLedger, "failed", _nothing)


def _salts_are_ignored() -> AbstractContextManager[Any]:
    return patch("dualpath.scheduler.service.root_key", lambda namespace, *_: root_key(namespace, ""))


# -- requests ---------------------------------------------------------------------------------------------------------


def _first_failure_ends_a_request() -> AbstractContextManager[Any]:
    return patch.object(Patience, "failed", lambda *_: False)


def _retries_come_at_once() -> AbstractContextManager[Any]:
    stack = ExitStack()

    def failed(self: Patience, cause: DualPathError) -> bool:
        self._num_failures += 1
        return self._num_failures <= 3

    @contextmanager
    def without() -> Iterator[None]:
        with stack:
            stack.enter_context(patch.object(Patience, "failed", failed))
            stack.enter_context(patch.object(Patience, "pause_s", lambda self: 0.0))
            yield

    return without()


def _resumed_requests_forget_their_tokens() -> AbstractContextManager[Any]:
    attempt_request = Job.attempt_request

    def from_the_start(self: Job) -> Any:
        generated, self.generated = self.generated, []
        try:
            return attempt_request(self)
        finally:
            self.generated = generated

    return patch.object(Job, "attempt_request", from_the_start)


def _former_sessions_are_served() -> AbstractContextManager[Any]:
    return patch.object(EngineServer, "_check", _nothing)


ABLATIONS: dict[str, Ablation] = {
    function.__name__.strip("_").replace("_", "-"): function
    for function in (
        _without_storage_checksums,
        _without_comparing_history,
        _without_comparing_device_memory,
        _late_transfers_give_their_slots_back,
        _failed_pushes_count_as_ended,
        _decode_engines_remove_nobody,
        _decode_slots_are_released_first,
        _moved_slots_are_not_told,
        _layers_load_before_the_last_but_one_has_left,
        _device_blocks_are_freed_while_in_use,
        _write_slots_are_freed_before_the_write,
        _failed_writes_stay_announced,
        _salts_are_ignored,
        _first_failure_ends_a_request,
        _retries_come_at_once,
        _resumed_requests_forget_their_tokens,
        _former_sessions_are_served,
    )
}
