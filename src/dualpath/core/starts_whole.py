"""What starts as a whole or not at all: an error on the way takes down what was up by then."""

from __future__ import annotations

from abc import ABC, abstractmethod


class StartsWhole(ABC):
    """Build with ``start``, take apart with ``close``."""

    async def start(self) -> None:
        """Return when it serves. On any error nothing is left running."""
        try:
            await self._start()
        except BaseException:
            await self.close(0.0)
            raise

    @abstractmethod
    async def _start(self) -> None: ...

    @abstractmethod
    async def close(self, drain_s: float) -> None:
        """Let running requests end for up to ``drain_s``, cancel the rest, free everything."""
