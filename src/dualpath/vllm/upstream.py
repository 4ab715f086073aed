"""Questions that any vLLM server can answer: what a body's prompt is in tokens, how many it has."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from dualpath.core.errors import EngineLostError
from dualpath.core.exchange import Exchanges
from dualpath.vllm.api_server import ApiServer


class VllmUpstream:
    """``gateway.passthrough.upstream.Upstream``. Servers take turns; one that does not answer is passed over."""

    def __init__(self, servers: Sequence[ApiServer], exchanges: Exchanges, answer_s: float = 30.0) -> None:
        """``answer_s``: of each server, which computes nothing for these questions."""
        self.exchanges = exchanges
        self._servers, self._answer_s = servers, answer_s
        self._turns = itertools.count()

    async def ask(self, path: str, body: Mapping[str, Any]) -> bytes:
        first, failure = next(self._turns), EngineLostError("there is no vLLM server")
        for number in range(len(self._servers)):
            server = self._servers[(first + number) % len(self._servers)]
            try:
                async with asyncio.timeout(self._answer_s):
                    return await server.ask(path, body)
            except EngineLostError as error:
                failure = error
            except TimeoutError:
                failure = EngineLostError(f"vLLM at {server.url} has not answered {path} for {self._answer_s:g} s")
        raise failure
