"""What the scheduler may ask of a node inside a vLLM worker, by the control line. Tokens come over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from dualpath.core.ids import RequestId
from dualpath.protocol.api import DecodeOrder, DecodeStaging, DecodeStep, PrefillOrder, PrefillStaging
from dualpath.protocol.methods import holds


class PrefillNodeLine(PrefillStaging, Protocol):
    @holds
    def hand_over(self, order: PrefillOrder) -> AsyncIterator[bool]:
        """True at once: vLLM may be asked now, with ``messages.attach``. Ends when the prompt's KV is complete in the
        decode buffer, be it before or after vLLM's answer. Closing it gives the hand-over up.
        """
        ...


class DecodeNodeLine(DecodeStaging, Protocol):
    @holds
    def persist(self, order: DecodeOrder) -> AsyncIterator[DecodeStep]:
        """What is being stored, beginning with the prompt's new blocks; the first item says that vLLM may be asked.

        Ends after ``stop`` when the last write has.
        """
        ...

    async def stop(self, request_id: RequestId) -> None:
        """vLLM has ended. All writes that its steps began are told before this is answered."""
        ...
