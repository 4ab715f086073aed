"""The ranks of one vLLM server: how they meet, how long they wait for each other, and what becomes of the last ones.

The first rank reaches the others over lines of their own. Whoever loses another ends its process, and with it vLLM
ends the server: no rank could go on, and nobody could tell what the lost one still moves.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any, Protocol

from dualpath.core.errors import ConfigError, EngineLostError
from dualpath.core.ids import EngineId, NodeId
from dualpath.core.runtime import Runtime
from dualpath.protocol.client import stub
from dualpath.protocol.node_link import LinkConfig, NodeLink
from dualpath.protocol.socket_channel import SocketChannel

_log = logging.getLogger(__name__)
ABANDONED = 75  # exit code
MEET_S = 180.0  # for the first rank to come for the first time: it waits for all of them
_SILENCE_S = 30.0
_LOOKS_S = 2.0  # by so much two watches together may be late
_STOP_S = 3.0  # between two ranks that are told to stop
_CLAIM_S = 30.0
_AGAIN_S = 0.2


class Ranks(Protocol):
    """In one rank's worker."""

    rank: int
    num_ranks: int

    def gather(self, mine: Any) -> list[Any]:
        """What each rank has given, in order. All call it, equally often; it returns when they have. vLLM's thread."""
        ...


def silence_s(lease_s: float | None) -> float:
    """After so long without a word ranks give each other up."""
    return _SILENCE_S if lease_s is None else min(_SILENCE_S, lease_s / 3)


def patience_s(lease_s: float) -> float:
    """Of the first rank with its scheduler: when the lease is over, the others have ended, too."""
    return max(lease_s / 2, lease_s - silence_s(lease_s) - _LOOKS_S)


async def claim(name: str, runtime: Runtime, limit_s: float = _CLAIM_S) -> socket.socket:
    """Nobody else has this name: the process that had it, which could still move KV, has ended.

    To be kept for the life of the process; the kernel frees the name then. Raises ConfigError.
    """
    claimed = socket.socket(socket.AF_UNIX)
    end_s = runtime.now_s() + limit_s
    while True:
        try:
            claimed.bind(f"\0dualpath {name}")
        except OSError:
            if runtime.now_s() > end_s:
                claimed.close()
                raise ConfigError(f"{name} of a former server has not ended") from None
            await runtime.sleep_s(_AGAIN_S)
        else:
            return claimed


def end_alone(error: Exception) -> None:
    """A rank that cannot start ends at once: the others wait for it, and vLLM asks the first one first."""
    _log.error("this rank cannot start: ending: %s", error, exc_info=error)
    os._exit(ABANDONED)


class _Channel(SocketChannel):
    def end_process(self) -> None:
        """vLLM ends it when we have ended."""


class OtherRanks:
    """The first rank's lines to the others. Event loop only."""

    def __init__(self, engine_id: EngineId, runtime: Runtime) -> None:
        self._engine_id, self._runtime = engine_id, runtime
        self._links: list[tuple[NodeLink, _Channel]] = []
        self._ending: asyncio.Task[None] | None = None

    async def meet(
        self, host: str, ports: Sequence[int], secret: bytes, protocol: type, heartbeat_s: float
    ) -> list[Any]:
        """Their engines, in order."""
        engines = []
        for number, port in enumerate(ports, 1):
            channel, config = _Channel(host, port, secret), LinkConfig(heartbeat_s=heartbeat_s)
            name = NodeId(f"{self._engine_id} rank {number}")
            link = NodeLink(name, channel, config, self._lost, _log.info, self._runtime)
            self._links.append((link, channel))
            await link.start()
            engines.append(stub(protocol)(link, self._engine_id))
        return engines

    def _lost(self, link: NodeLink, error: EngineLostError) -> None:
        self._ending = self._ending or asyncio.create_task(self._end(link, error))

    async def _end(self, link: NodeLink, error: EngineLostError) -> None:
        """Unless we are about to be told to stop, too."""
        await self._runtime.sleep_s(_STOP_S)
        _log.error("%s is lost: ending: %s", link.node_id, error)
        os._exit(ABANDONED)

    async def close(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        for link, channel in self._links:
            await link.close()
            await channel.close()
