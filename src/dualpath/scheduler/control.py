"""What those who run the server may ask of it as a whole: pause, go on, end requests, say what became of them.

Paused, it takes requests and gives none to engines. What runs meanwhile is aborted, or comes to its end, or is kept:
then engines compute nothing, requests that have a token stay where they are, and all others wait in the queue again;
retracted, all do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from dualpath.core.ids import RequestId
from dualpath.core.pause import PauseMode
from dualpath.core.request import RecordAnswer, RecordQuery
from dualpath.core.runtime import Runtime
from dualpath.scheduler.coordinator import Coordinator
from dualpath.scheduler.desk.api import DeskClient
from dualpath.scheduler.gate import Gate
from dualpath.scheduler.records import RecordBook

_LOOK_S = 0.02


class Control:
    """Event loop only. All of it may be asked again, at any time."""

    def __init__(
        self,
        desk: DeskClient,
        coordinator: Coordinator,
        gate: Gate,
        runtime: Runtime,
        abort: Callable[[Collection[RequestId] | None], int],
        book: RecordBook,
    ) -> None:
        self._desk, self._coordinator, self._gate = desk, coordinator, gate
        self._runtime, self._abort, self._book = runtime, abort, book
        self.find: Callable[[str], Sequence[RequestId]] = lambda name: (RequestId(name),)
        self.may_see: Callable[[str, RequestId], bool] = lambda viewer, request_id: False

    @property
    def is_paused(self) -> bool:
        return not self._gate.is_open

    @property
    def weight_version(self) -> str:
        """Of the weights that new requests are served with."""
        return self._desk.epoch.weights.version

    async def pause(self, mode: PauseMode = PauseMode.ABORT) -> None:
        """Returns when nothing of what ``mode`` ends is running any more, or when it is to go on already.

        Raises what the desk raises when it cannot be asked; requests are given to engines as before then.
        """
        was_open = self._gate.is_open
        self._hold(mode)
        try:
            is_frozen = await self._desk.pause(mode)
        except BaseException:
            if was_open:
                self._gate.open()
            raise
        if is_frozen:
            self._requeue(mode)
        await self._until_over(mode)

    def _hold(self, mode: PauseMode) -> None:
        self._gate.close(freezes=mode.keeps)
        if mode is PauseMode.ABORT:
            self._abort(None)

    def _requeue(self, mode: PauseMode) -> None:
        """Engines stand still."""
        self._coordinator.requeue(is_all=mode is PauseMode.RETRACT)

    async def _until_over(self, mode: PauseMode) -> None:
        if mode.keeps:
            return
        while self._coordinator.attempts and not self._gate.is_open:
            await self._runtime.sleep_s(_LOOK_S)
        await self._coordinator.releaser.until_heard(lambda: not self._gate.is_open)

    async def update_weights(self, directory: str, version: str | None = None) -> str:
        """Serve other weights, from a model directory that every node has. Returns their version.

        Requests that are decoded go on with the KV that they have; what they make from then on nobody else finds.
        Raises WeightsError where an engine cannot load them: nothing has changed then.
        """
        return (await self._desk.update_weights(directory, version)).weights.version

    async def flush(self) -> None:
        """Find none of the blocks that are stored now any more. They go when room is needed."""
        await self._desk.flush()

    async def resume(self) -> None:
        self._gate.open()
        await self._desk.resume()

    async def abort(self, names: Collection[str] | None = None) -> int:
        """``abort_here``, of requests by the names that clients gave them."""
        return self._abort_named(names)

    def _abort_named(self, names: Collection[str] | None) -> int:
        return self._abort(None if names is None else {found for name in names for found in self.find(name)})

    async def records(self, query: RecordQuery) -> RecordAnswer:
        """Of requests that run, and of the latest that have ended."""
        return self._records_here(query)

    def _records_here(self, query: RecordQuery) -> RecordAnswer:
        return self._book.answer(query, self.may_see)

    def abort_here(self, request_ids: Collection[RequestId] | None = None) -> int:
        """End these requests, or all; what they have generated is theirs. Returns how many there were."""
        return self._abort(request_ids)
