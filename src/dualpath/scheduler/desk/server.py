"""The desk's end of gateways' links: a seat for each, and what becomes of one that is not heard any more."""

from __future__ import annotations

from collections.abc import Mapping

from dualpath.core.ids import EngineId
from dualpath.core.runtime import Runtime
from dualpath.protocol import wire
from dualpath.protocol.host import EngineServer, Served, caller_of
from dualpath.scheduler.desk.api import DESK, SeatCalls
from dualpath.scheduler.desk.desk import Desk

_TICK_S = 0.5


class DeskServer:
    """``protocol.channel.Process``, for links whose caller is ``NAME.LIFE``. Event loop only."""

    def __init__(self, desk: Desk, report: wire.NodeReport, runtime: Runtime, lease_s: float) -> None:
        """``report``: without engines."""
        self._desk, self._report, self._runtime, self._lease_s = desk, report, runtime, lease_s
        self._incarnation = runtime.unique_id()
        self._server = EngineServer({}, runtime, self._served)
        self._seats = dict(desk.former)
        self._silent_s = dict.fromkeys(desk.former, 0.0)
        desk.tasks.spawn(self._watch(), is_patrol=True)

    async def open(self, session: str) -> bytes:
        caller = caller_of(session)
        self._hear(caller)
        name = self._seats[caller].name
        for former in [other for other, seat in self._seats.items() if seat.name == name and other != caller]:
            await self._give_up(former)
        await self._server.open(session)
        return wire.encode(wire.Opened(self._incarnation, (), None, self._report))

    async def send(self, session: str, batch: bytes) -> None:
        self._server.receive(session, batch)
        self._hear(caller_of(session))

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        batch = await self._server.poll(session, max_wait_s)
        self._hear(caller_of(session))
        return batch

    async def close(self) -> None:
        await self._server.close()

    def _hear(self, caller: str) -> None:
        self._silent_s[caller] = 0.0
        if caller not in self._seats:
            self._seats[caller] = self._desk.seat(caller)

    def _served(self, caller: str) -> Mapping[EngineId, Served]:
        return {DESK: Served(self._seats[caller], SeatCalls)}

    async def _watch(self) -> None:
        """Silence is counted in ticks, so that a stall of our own process is not held against a gateway."""
        while True:
            await self._runtime.sleep_s(_TICK_S)
            for caller in list(self._seats):
                if caller not in self._seats:
                    continue  # given up while another was
                self._silent_s[caller] += _TICK_S
                if self._silent_s[caller] > self._lease_s:
                    await self._give_up(caller)

    async def _give_up(self, caller: str) -> None:
        """If it is alive it begins again, with a seat that has nothing."""
        await self._server.end_caller(caller)
        seat = self._seats.pop(caller, None)
        self._silent_s.pop(caller, None)
        if seat is not None:
            self._desk.vacate(caller, seat)
