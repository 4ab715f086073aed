"""What the scheduler may ask of a node inside a vLLM worker, by the control line. Tokens come over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from dualpath.core.ids import RequestId
from dualpath.core.weights import Weights
from dualpath.protocol.api import DecodeOrder, DecodeStaging, DecodeStep, PrefillOrder, PrefillStaging
from dualpath.protocol.methods import holds


class WeightsLine(Protocol):
    async def weights(self) -> tuple[Weights, str]:
        """As ``protocol.api.EngineCompute``'s."""
        ...

    async def name_weights(self, weights: Weights) -> str:
        """Their fingerprint. Raises ConfigError where vLLM's model cannot take them, as far as files can tell."""
        ...

    async def door_key(self) -> str:
        """To the door in the API server (``dualpath.vllm.door``)."""
        ...


class PrefillNodeLine(PrefillStaging, WeightsLine, Protocol):
    @holds
    def hand_over(self, order: PrefillOrder) -> AsyncIterator[bool]:
        """True at once: vLLM may be asked now, with ``messages.attach``. Ends when the prompt's KV is complete in the
        decode buffer, be it before or after vLLM's answer. Closing it gives the hand-over up.
        """
        ...


class DecodeNodeLine(DecodeStaging, WeightsLine, Protocol):
    @holds
    def persist(self, order: DecodeOrder) -> AsyncIterator[DecodeStep]:
        """What is being stored, beginning with the prompt's new blocks; the first item says that vLLM may be asked.

        Ends after ``stop`` when the last write has.
        """
        ...

    async def stop(self, request_id: RequestId) -> None:
        """vLLM has ended. All writes that its steps began are told before this is answered."""
        ...
