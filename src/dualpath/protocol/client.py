"""Engines of another process, as the scheduler sees engines: a protocol's calls over a link."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable
from typing import Any

from dualpath.core.ids import EngineId
from dualpath.protocol.api import DecodeEngineClient, EngineInfo, PrefillEngineClient
from dualpath.protocol.methods import Method, methods
from dualpath.protocol.node_link import NodeLink


class _Stub:
    """While the link is down every call raises its EngineLostError at once."""

    def __init__(self, link: NodeLink, engine_id: EngineId) -> None:
        self._link, self._engine_id = link, engine_id

    @property
    def info(self) -> EngineInfo:
        """As of the latest session: a restarted process is another peer."""
        return self._link.info(self._engine_id)


def stub(protocol: type) -> Any:
    """A class that implements the protocol, be it a whole engine's or one part's; it takes the link and the engine."""
    calls = {name: _over_link(method) for name, method in methods(protocol).items()}
    return type(f"Remote{protocol.__name__}", (_Stub,), calls)


def _over_link(method: Method) -> Callable[..., Any]:
    async def call(self: _Stub, *arguments: Any, **named: Any) -> Any:
        return await self._link.calls.call(self._engine_id, method, method.in_order(arguments, named))

    def stream(self: _Stub, *arguments: Any, **named: Any) -> AsyncGenerator[Any, None]:
        return self._link.calls.stream(self._engine_id, method, method.in_order(arguments, named))

    return functools.wraps(method.function)(stream if method.is_stream else call)


RemotePrefillEngine: Callable[[NodeLink, EngineId], PrefillEngineClient] = stub(PrefillEngineClient)
RemoteDecodeEngine: Callable[[NodeLink, EngineId], DecodeEngineClient] = stub(DecodeEngineClient)
