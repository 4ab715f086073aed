"""``Control`` of a gateway beside others: the desk tells all of them what is asked of one, that one as well."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress

from dualpath.core.errors import DualPathError
from dualpath.core.ids import RequestId
from dualpath.core.pause import PauseMode
from dualpath.core.request import OTHER_GATEWAYS, RecordAnswer, RecordQuery
from dualpath.core.runtime import Runtime
from dualpath.scheduler.control import Control
from dualpath.scheduler.coordinator import Coordinator
from dualpath.scheduler.desk.api import Inquiry, Outlook, PauseState
from dualpath.scheduler.desk.remote import RemoteDesk
from dualpath.scheduler.gate import Gate
from dualpath.scheduler.records import RecordBook, merged


class SharedControl(Control):
    """Event loop only. What ``follow`` is told is the desk's latest word, so a gateway that comes late follows too."""

    _desk: RemoteDesk

    def __init__(
        self,
        desk: RemoteDesk,
        coordinator: Coordinator,
        gate: Gate,
        runtime: Runtime,
        abort: Callable[[Collection[RequestId] | None], int],
        book: RecordBook,
    ) -> None:
        super().__init__(desk, coordinator, gate, runtime, abort, book)
        self._latest: PauseState | None = None
        self._num_followed = self._num_answered = 0  # the latest abort, the latest inquiry
        desk.on_news = self.follow
        self.follow(desk.news)

    async def pause(self, mode: PauseMode = PauseMode.ABORT) -> None:
        """Raises OverloadedError where the desk cannot be asked."""
        await self._desk.pause(mode)

    async def resume(self) -> None:
        await self._desk.resume()

    async def abort(self, names: Collection[str] | None = None) -> int:
        return await self._desk.abort(None if names is None else tuple(names))

    async def records(self, query: RecordQuery) -> RecordAnswer:
        """With those of the other gateways."""
        try:
            others = await self._desk.records(query)
        except DualPathError:
            others = RecordAnswer([], (OTHER_GATEWAYS,))
        return merged([self._records_here(query), others], query.limit)

    def follow(self, outlook: Outlook) -> None:
        for abort in outlook.aborts:
            if abort.number > self._num_followed:
                self._num_followed = abort.number
                self._desk.aborted(abort.number, self._abort_named(abort.names))
        for inquiry in outlook.inquiries:
            if inquiry.number > self._num_answered:
                self._num_answered = inquiry.number
                self._desk.tasks.spawn(self._answer(inquiry), is_patrol=True)
        if outlook.pause is not None and outlook.pause != self._latest:
            former, self._latest = self._latest, outlook.pause
            self._follow_pause(former, outlook.pause)

    def _follow_pause(self, former: PauseState | None, pause: PauseState) -> None:
        if pause.mode is None:
            self._gate.open()
            self._desk.paused(pause.number)
            return
        if former is None or former.number != pause.number:
            self._hold(pause.mode)
        if pause.is_frozen:
            self._requeue(pause.mode)
        if pause.is_frozen or not pause.mode.keeps:
            self._desk.tasks.spawn(self._carry_out(pause.number, pause.mode), is_patrol=True)

    async def _answer(self, inquiry: Inquiry) -> None:
        """Who asked does without it where it does not get there."""
        with suppress(DualPathError):
            await self._desk.answer(inquiry.number, self._records_here(inquiry.query))

    async def _carry_out(self, number: int, mode: PauseMode) -> None:
        await self._until_over(mode)
        self._desk.paused(number)
