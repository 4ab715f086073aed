"""What prefill forwards that failed leave behind: memory that their transfers may touch, and who is to hear of it.

Memory here is a workspace that transfers of a silent peer may still read or write; there it is a decode buffer where
pushes may still arrive. Neither is used again before its transfers have ended.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from dualpath.core.errors import DualPathError, EngineLostError, KvCorruptError, PathBrokenError, TransferError
from dualpath.core.ids import EngineId, RequestId
from dualpath.core.runtime import Runtime
from dualpath.engine.layer_stream import WorkspaceStream
from dualpath.engine.prefill_batch import Batch, PrefillJob
from dualpath.engine.workspace import Workspace
from dualpath.traffic.contract import Transfer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FailedForward:
    """``is_stuck``: transfers of the forward's ``stream`` may still touch its workspace."""

    stream: WorkspaceStream
    is_stuck: bool


class FailedForwards:
    """Event loop only."""

    def __init__(self, engine_id: EngineId, workspace: Workspace, runtime: Runtime) -> None:
        self._engine_id, self._workspace, self._runtime = engine_id, workspace, runtime
        self._unsettled: dict[RequestId, list[Transfer[int]]] = {}  # pushes, where they may arrive
        self._waits: dict[int, asyncio.Task[None]] = {}  # for the transfers of a workspace, by its number
        self._usable = asyncio.Event()  # there is a workspace that nothing touches
        self._usable.set()

    def __len__(self) -> int:
        return len(self._unsettled) + len(self._waits)

    async def close(self) -> None:
        waits = list(self._waits.values())
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    def take(self, batch: Batch, error: DualPathError, failure: FailedForward | None) -> list[PrefillJob]:
        """A lone request is told; of several those are returned that may be computed again, one by one.

        So only the one at fault fails. But none is computed again into a decode buffer where pushes of this forward may
        still arrive. ``failure`` is None where the forward never began.
        """
        log.warning("%s: a forward of %d requests failed: %s", self._engine_id, len(batch), error)
        unsettled = {} if failure is None else failure.stream.unsettled()
        is_stuck = failure is not None and failure.is_stuck
        if failure is not None and is_stuck:
            self._set_aside(failure.stream)
        again: list[PrefillJob] = []
        for job, _ in batch:
            left = unsettled.get(job.order.decode_peer)
            if left:
                self._unsettled.setdefault(job.order.request.request_id, []).extend(left)
            if left or len(batch) == 1 or is_stuck or not isinstance(error, TransferError):
                job.end(self._explain(job, error))
            elif not job.has_ended:
                job.alone = True
                again.append(job)
        return again

    def may_arrive(self, request_id: RequestId) -> bool:
        """Whether pushes of the request's forward may still write decode buffers."""
        if not all(transfer.settled.done() for transfer in self._unsettled.get(request_id, ())):
            return True
        self._unsettled.pop(request_id, None)
        return False

    async def until_usable(self) -> None:
        """Until there is a workspace that no former forward's transfers can touch."""
        await self._usable.wait()

    def _explain(self, job: PrefillJob, error: DualPathError) -> DualPathError:
        if isinstance(error, KvCorruptError):
            return error
        kind = PathBrokenError if isinstance(error, TransferError) else EngineLostError
        return kind(f"{self._engine_id}: prefill with {job.order.decode_peer} failed: {error}")

    def _set_aside(self, stream: WorkspaceStream) -> None:
        """Leave a stuck forward's workspace to its transfers."""
        number = self._workspace.set_aside()
        self._waits[number] = asyncio.create_task(self._take_back(number, stream))
        if self._workspace.is_usable:
            log.warning("%s: transfers of a failed forward do not end; goes on in the spare workspace", self._engine_id)
        else:
            self._usable.clear()

    async def _take_back(self, number: int, stream: WorkspaceStream) -> None:
        while not await self._runtime.to_thread(stream.abandon, 1.0):
            pass
        del self._waits[number]
        self._workspace.take_back(number)
        self._usable.set()
        log.warning("%s: transfers of a failed forward have ended", self._engine_id)
