"""What passthrough needs of the servers behind it, beside the scheduler's backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from dualpath.core.exchange import Exchanges


class Upstream(Protocol):
    exchanges: Exchanges

    async def ask(self, path: str, body: Mapping[str, Any]) -> bytes:
        """The answer of any server that is up, to a question that needs none of the KV.

        Raises RefusedError for the client's fault, EngineLostError where no server answers.
        """
        ...
