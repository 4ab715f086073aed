"""What is asked of one gateway and goes to all: a pause, the end of requests, their records. Each does it, says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from dualpath.core.errors import InvalidRequestError
from dualpath.core.pause import PauseMode
from dualpath.core.request import RecordAnswer, RecordQuery
from dualpath.core.runtime import Runtime
from dualpath.scheduler.desk.api import Abort, Inquiry, PauseState
from dualpath.scheduler.desk.seat import Seat
from dualpath.scheduler.desk.standstill import Standstill
from dualpath.scheduler.holding import Releaser
from dualpath.scheduler.records import merged
from dualpath.scheduler.tasks import TaskSet

ANSWER_S = 2.0  # for records, which may be incomplete
_LOOK_S = 0.02


class Broadcast:
    """Gateways elsewhere find it in their news (``api.Outlook``); one in the desk's own process does it by itself.

    Gateways also remember a pause for the next desk: that asks those that were there before it, and the latest state
    that one of them knows holds. Event loop only. All of it may be asked again, at any time, by any gateway.
    """

    def __init__(
        self,
        seats: Sequence[Seat],
        standstill: Standstill,
        releaser: Releaser,
        next_number: Callable[[], int],
        runtime: Runtime,
        tasks: TaskSet,
    ) -> None:
        """``seats``: as they are at any time. ``releaser``: of what gateways had that are not there any more.

        ``next_number``: beyond those of a former desk.
        """
        self._seats, self._standstill, self._releaser = seats, standstill, releaser
        self._next_number, self._runtime, self._tasks = next_number, runtime, tasks
        self._num_aborted: dict[int, int] = {}
        self._found: dict[int, list[RecordAnswer]] = {}
        self._left: set[str] = set()  # gateways that were given up; they may have come back
        self._state = PauseState(0, None, is_frozen=False)  # the latest that is known
        self._unheard: dict[Seat, None] = {}  # of a former desk's time, which may know a later one

    @property
    def current(self) -> PauseState | None:
        """``api.Outlook.pause``."""
        return None if self._unheard else self._state

    def expect(self, seats: Iterable[Seat]) -> None:
        """These gateways were there before this desk: until all are heard, or given up, no request is placed."""
        self._unheard = dict.fromkeys(seats)
        if self._unheard:
            self._standstill.leave()

    def hear(self, seat: Seat, told: PauseState | None) -> None:
        """The latest state that a gateway knows; None: it knows none, or has been given up."""
        is_news = seat in self._unheard
        self._unheard.pop(seat, None)
        if told is not None and told.number > self._state.number:
            self._state, is_news = told, True
        if is_news and not self._unheard:
            self._tasks.spawn(self._carry_out(self._state), is_patrol=True)

    async def pause(self, mode: PauseMode) -> bool:
        """``api.Questions.pause``. Gateways know it before engines stand still, so none takes one for hung."""
        try:
            return await self._change(mode)
        except InvalidRequestError:
            await self._change(None)
            raise

    async def resume(self) -> None:
        """``api.Questions.resume``. A gateway that had not heard of it could tell the next desk to pause again."""
        await self._change(None)

    async def _change(self, mode: PauseMode | None) -> bool:
        self._unheard.clear()
        state = self._state = PauseState(self._next_number(), mode, is_frozen=False)
        is_frozen = await self._carry_out(state)
        await self._until(lambda seat: seat.num_paused >= state.number or not self._is_on(state))
        if mode is not None:
            await self._standstill.until_none_runs_unseen(lambda: self._is_on(state))
            if not mode.keeps:
                await self._releaser.until_heard(lambda: self._is_on(state))
        return is_frozen

    async def _carry_out(self, state: PauseState) -> bool:
        """Whether engines stand still."""
        if not self._is_on(state):
            return False
        self._tell()
        if state.mode is None:
            await self._standstill.end()
            return False
        is_frozen = await self._standstill.begin(freezes=state.mode.keeps)
        if is_frozen and self._is_on(state):
            self._state = state._replace(is_frozen=True)
            self._tell()
        return is_frozen

    async def abort(self, names: tuple[str, ...] | None) -> int:
        """``api.SeatCalls.abort``."""
        number = self._next_number()
        self._num_aborted[number] = 0
        for seat in self._elsewhere():
            seat.aborts[number] = Abort(number, names)
        self._tell()
        try:
            await self._until(lambda seat: number not in seat.aborts)
        finally:
            num_aborted = self._num_aborted.pop(number)
        return num_aborted

    def count_aborted(self, number: int, num_requests: int) -> None:
        if number in self._num_aborted:
            self._num_aborted[number] += num_requests

    async def records(self, query: RecordQuery, asking: Seat) -> RecordAnswer:
        """``api.SeatCalls.records``."""
        number, seats = self._next_number(), [seat for seat in self._elsewhere() if seat is not asking]
        found = self._found[number] = list[RecordAnswer]()
        for seat in seats:
            seat.inquiries[number] = Inquiry(number, query)
            seat.tell()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    await self._until(lambda seat: number not in seat.inquiries)
        finally:
            del self._found[number]
            late = {seat.name for seat in seats if seat.inquiries.pop(number, None) is not None}
        gone = self._left - {seat.name for seat in self._seats}
        return merged([*found, RecordAnswer([], tuple(late | gone))], query.limit)

    def answered(self, number: int, found: RecordAnswer) -> None:
        if number in self._found:
            self._found[number].append(found)

    def gone(self, seat: Seat) -> None:
        """Its gateway has been given up."""
        if seat.is_elsewhere:
            self._left.add(seat.name)

    def _is_on(self, state: PauseState) -> bool:
        return self._state.number == state.number

    def _tell(self) -> None:
        for seat in self._seats:
            seat.tell()

    def _elsewhere(self) -> list[Seat]:
        return [seat for seat in self._seats if seat.is_elsewhere]

    async def _until(self, is_done: Callable[[Seat], bool]) -> None:
        """By every gateway that has not been given up."""
        while not all(map(is_done, self._elsewhere())):
            await self._runtime.sleep_s(_LOOK_S)
