"""vLLM servers of a system's actors, as its scheduler joins them: by their control lines and APIs, as any others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from dualpath.core.errors import DualPathError, EngineGoneError
from dualpath.core.ids import NodeId
from dualpath.core.plan import Role
from dualpath.protocol import wire
from dualpath.protocol.channel import Channel
from dualpath.protocol.socket_channel import SocketChannel
from dualpath.ray.channel import ask
from dualpath.ray.runtime import Handle, import_ray
from dualpath.ray.vllm_node import Met
from dualpath.vllm.api_server import ApiServer


class RayServers:
    """Implements ``cluster.vllm.servers.Servers``. Actors start their servers when they are first met."""

    def __init__(self, actors: Mapping[NodeId, Handle], roles: Mapping[NodeId, Role], *, starts: bool = True) -> None:
        """``starts``: it is the scheduler that meets them, whose wish it is that they run. Gateways find them."""
        self.roles, self._starts = roles, starts
        self.apis = {node_id: ApiServer("") for node_id in actors}
        self._actors, self._ray = actors, import_ray()

    def channel(self, node_id: NodeId) -> Channel:
        return RayServerChannel(self._actors[node_id], self.apis[node_id], starts=self._starts)

    def start(self) -> None:
        """Channels do, when they are opened."""

    async def until_ended(self, node_id: NodeId) -> None:
        why = await ask(self._ray, lambda: self._actors[node_id].until_ended.remote())
        raise DualPathError(why)

    def watch(self) -> None:
        for actor in self._actors.values():
            actor.watch.remote()

    async def close(self) -> None:
        """``dualpath down`` ends the actors, each with its server."""


class RayServerChannel:
    """``protocol.channel.Channel`` to the node in an actor's server, wherever that is when a session begins."""

    def __init__(self, actor: Handle, api: ApiServer, *, starts: bool = True) -> None:
        self._ray, self._actor, self._api = import_ray(), actor, api
        self._meet = actor.meet if starts else actor.find
        self._line: SocketChannel | None = None
        self._closing: asyncio.Task[None] | None = None

    async def open(self, session: str) -> bytes:
        met: Met = await ask(self._ray, self._meet.remote)
        if met.server is None:
            return wire.encode(wire.Opened("", met.lines, met.failure))
        if self._line is not None:
            await self._line.close()
        place = met.server.place
        self._api.move(place.url, met.server.api_key)
        self._line = SocketChannel(place.line_host, place.line_port, met.server.secret.encode())
        try:
            return await self._line.open(session)
        except DualPathError:
            if met.server.ended is not None:
                raise EngineGoneError(met.server.ended) from None
            if met.lines:
                return wire.encode(wire.Opened("", met.lines))
            raise

    async def send(self, session: str, batch: bytes) -> None:
        await self._there.send(session, batch)

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        return await self._there.poll(session, max_wait_s)

    @property
    def _there(self) -> SocketChannel:
        if self._line is None:
            raise DualPathError("the server has not been met")
        return self._line

    def end_process(self) -> None:
        """The actor's, which may be what is silent; its next one ends the server that it finds."""
        self._ray.kill(self._actor, no_restart=False)
        if self._line is not None:  # else a question to that server would wait for its end
            self._closing = asyncio.create_task(self._line.close())
