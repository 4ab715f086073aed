"""A channel to a node in this process, which never fails."""

from __future__ import annotations

from tests.scheduler.fixtures import NAMESPACE

from dualpath.core.ids import NodeId
from dualpath.protocol import wire
from dualpath.protocol.api import EngineInfo
from dualpath.protocol.host import EngineServer

NODE = NodeId("n")


class Line:
    def __init__(self, server: EngineServer, infos: tuple[EngineInfo, ...] = ()) -> None:
        self._opened = wire.Opened("a", (), None, wire.NodeReport(NAMESPACE, "m", 100, infos, b"", "h", 1))
        self._server = server

    async def open(self, session: str) -> bytes:
        await self._server.open(session)
        return wire.encode(self._opened)

    async def send(self, session: str, batch: bytes) -> None:
        self._server.receive(session, batch)

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        return await self._server.poll(session, max_wait_s)

    def end_process(self) -> None: ...
