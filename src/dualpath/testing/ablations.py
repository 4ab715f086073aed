"""The safeguards one by one, each as what takes it away: without it, a seed must find that something goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from dualpath.core.errors import DualPathError, TransferError
from dualpath.core.ids import PeerId
from dualpath.core.keys import Namespace, root_key
from dualpath.engine.decode import DecodeEngine
from dualpath.engine.forward_digests import ForwardDigests
from dualpath.engine.integrity import Integrity
from dualpath.engine.layer_stream import WorkspaceStream
from dualpath.engine.running_set import RunningSet
from dualpath.engine.sequence import Sequence as DecodeSequence
from dualpath.engine.staged import StagedReads
from dualpath.protocol.host import EngineServer, caller_of
from dualpath.scheduler.blocks import WriteLedger
from dualpath.scheduler.desk.broadcast import Broadcast
from dualpath.scheduler.desk.desk import Desk
from dualpath.scheduler.desk.remote import RemoteDesk
from dualpath.scheduler.desk.shared_control import SharedControl
from dualpath.scheduler.desk.standstill import Standstill
from dualpath.scheduler.engine_loads import EngineLoads
from dualpath.scheduler.holding import Hold
from dualpath.scheduler.job import Job
from dualpath.scheduler.peering import Peering
from dualpath.scheduler.retry_policy import Retries
from dualpath.traffic import memory
from dualpath.traffic.jobs import TransferJob
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
    abandon = TransferJob.abandon

    def settle_at_once(self: TransferJob, error: Exception) -> None:
        self.settle()
        abandon(self, error)

    return patch.object(TransferJob, "abandon", settle_at_once)


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


def _new_schedulers_know_of_no_former_peers() -> AbstractContextManager[Any]:
    return patch.object(Peering, "_remove_strangers", _nothing_async)


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
    free = RunningSet.free_if_unused

    def at_once(self: RunningSet, seq: DecodeSequence) -> bool:
        num_copies, stepping = seq.num_copies, self.stepping
        seq.num_copies, self.stepping = 0, []
        try:
            return free(self, seq)
        finally:
            seq.num_copies, self.stepping = num_copies, stepping

    return patch.object(RunningSet, "free_if_unused", at_once)


def _write_slots_are_freed_before_the_write() -> AbstractContextManager[Any]:
    """By forgetting that a transfer holds its slots."""
    return patch.object(memory.EngineMemory, "hold_slots", lambda *_: [])


# -- blocks and their index -------------------------------------------------------------------------------------------


def _failed_writes_stay_announced() -> AbstractContextManager[Any]:
    return patch.object(WriteLedger, "failed", _nothing)


def _salts_are_ignored() -> AbstractContextManager[Any]:
    return patch("dualpath.core.weights.root_key", lambda namespace, *_: root_key(namespace, ""))


def _weights_are_no_part_of_the_namespace() -> AbstractContextManager[Any]:
    """An update changes weights, and finds what was stored for others."""
    of = Namespace.digest.fget  # type: ignore[attr-defined]
    return patch.object(Namespace, "digest", property(lambda self: of(replace(self, model_fingerprint=""))))


def _kept_requests_store_what_they_make() -> AbstractContextManager[Any]:
    """As if their KV were of the present weights, or of the former ones."""
    return patch.object(DecodeSequence, "is_mixed", property(lambda self: False, _nothing))


# -- requests ---------------------------------------------------------------------------------------------------------


def _first_failure_ends_a_request() -> AbstractContextManager[Any]:
    return patch.object(Retries, "failed", lambda *_: False)


def _retries_come_at_once() -> AbstractContextManager[Any]:
    stack = ExitStack()

    def failed(self: Retries, cause: DualPathError) -> bool:
        self._num_failures += 1
        return self._num_failures <= 3

    @contextmanager
    def without() -> Iterator[None]:
        with stack:
            stack.enter_context(patch.object(Retries, "failed", failed))
            stack.enter_context(patch.object(Retries, "pause_s", lambda self: 0.0))
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
    return patch.object(EngineServer, "_check", lambda self, session: self._callers[caller_of(session)])


# -- gateways and the desk ---------------------------------------------------------------------------------------------


def _dead_gateways_keep_what_they_held() -> AbstractContextManager[Any]:
    return patch.object(Desk, "vacate", lambda self, caller, seat: self.seats.remove(seat))


def _dead_gateways_calls_go_on() -> AbstractContextManager[Any]:
    async def end_nothing(*_: Any) -> list[Any]:
        return []

    return patch.object(Desk, "_end_caller", end_nothing)


def _notes_are_not_sent_again() -> AbstractContextManager[Any]:
    register = RemoteDesk._register

    async def forget(self: RemoteDesk) -> None:
        self._notes.clear()
        await register(self)

    return patch.object(RemoteDesk, "_register", forget)


def _gateways_never_hear_of_the_end_of_a_pause() -> AbstractContextManager[Any]:
    follow = SharedControl._follow_pause

    def hear_half(self: SharedControl, former: Any, pause: Any) -> None:
        if pause.mode is not None:
            follow(self, former, pause)

    return patch.object(SharedControl, "_follow_pause", hear_half)


def _pauses_are_answered_while_lost_engines_compute() -> AbstractContextManager[Any]:
    async def at_once(self: Standstill, is_on: Any) -> None: ...

    return patch.object(Standstill, "until_none_runs_unseen", at_once)


def _new_schedulers_know_of_no_pause() -> AbstractContextManager[Any]:
    return patch.object(Broadcast, "expect", _nothing)


def _gateways_tell_new_schedulers_of_no_pause() -> AbstractContextManager[Any]:
    hear = Broadcast.hear
    return patch.object(Broadcast, "hear", lambda self, seat, told: hear(self, seat, None))


def _requests_are_placed_again_while_being_given_back() -> AbstractContextManager[Any]:
    return patch.object(EngineLoads, "is_known", lambda self, request_id: False)


def _gateways_wait_for_news_of_a_desk_that_is_gone() -> AbstractContextManager[Any]:
    knows = RemoteDesk.knows

    def wait(self: RemoteDesk, report: Any) -> bool:
        return self._outlook is not None and knows(self, report)

    return patch.object(RemoteDesk, "knows", wait)


ABLATIONS: dict[str, Ablation] = {
    function.__name__.strip("_").replace("_", "-"): function
    for function in (
        _without_storage_checksums,
        _without_comparing_history,
        _without_comparing_device_memory,
        _late_transfers_give_their_slots_back,
        _failed_pushes_count_as_ended,
        _decode_engines_remove_nobody,
        _new_schedulers_know_of_no_former_peers,
        _decode_slots_are_released_first,
        _moved_slots_are_not_told,
        _layers_load_before_the_last_but_one_has_left,
        _device_blocks_are_freed_while_in_use,
        _write_slots_are_freed_before_the_write,
        _failed_writes_stay_announced,
        _salts_are_ignored,
        _weights_are_no_part_of_the_namespace,
        _kept_requests_store_what_they_make,
        _first_failure_ends_a_request,
        _retries_come_at_once,
        _resumed_requests_forget_their_tokens,
        _former_sessions_are_served,
        _dead_gateways_keep_what_they_held,
        _dead_gateways_calls_go_on,
        _notes_are_not_sent_again,
        _gateways_never_hear_of_the_end_of_a_pause,
        _pauses_are_answered_while_lost_engines_compute,
        _new_schedulers_know_of_no_pause,
        _gateways_tell_new_schedulers_of_no_pause,
        _requests_are_placed_again_while_being_given_back,
        _gateways_wait_for_news_of_a_desk_that_is_gone,
    )
}
