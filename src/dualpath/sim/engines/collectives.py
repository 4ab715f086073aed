"""Collectives of model execution on the GPUs' compute NICs: the class MODEL, beside which KV moves (section 5).

They come in bursts, one in every layer, evenly over a forward or a decode step, and whoever computes waits for them.
With traffic classes a burst gets 99 % of the NIC while KV wants it too, without them half; between bursts KV has all of
it. Closed forms of what ``tests/sim/fair_link.py``, a fluid model, serves flow by flow (arXiv 2602.21548, section 5
and A.1).
"""

from __future__ import annotations

from typing import Final

MODEL_SHARE: Final = 0.99  # of the bandwidth, while both classes want it (arXiv 2602.21548, section 5)
FAIR_SHARE: Final = 0.5  # of a burst without classes: KV is the other flow


class Collectives:
    """Bytes of a token on its own GPU's NIC, each way. One object for all engines of a cluster."""

    __slots__ = ("bytes_per_s", "decode_bytes", "prefill_bytes", "share")

    def __init__(self, bytes_per_s: float, prefill_bytes: float, decode_bytes: float, has_classes: bool) -> None:
        self.bytes_per_s = bytes_per_s  # of a compute NIC
        self.prefill_bytes = prefill_bytes  # for each new token of a forward
        self.decode_bytes = decode_bytes  # for each generated token
        self.share = MODEL_SHARE if has_classes else FAIR_SHARE

    def contended_bytes(self, kv_bytes: float, model_bytes: float, length_s: float) -> float:
        """Of bursts, while so much KV moves beside executions of ``length_s`` with ``model_bytes`` each, end to end.

        KV gets (1 - share) / share bytes for each byte of a burst, and all that fits between bursts.
        """
        if not kv_bytes or not model_bytes:
            return 0.0
        idle_bytes = max(0.0, self.bytes_per_s * length_s - model_bytes)
        return kv_bytes / ((1 - self.share) / self.share + idle_bytes / model_bytes)

    def delay_s(self, contended_bytes: float) -> float:
        """How much longer these bytes of bursts take beside KV."""
        return contended_bytes / self.bytes_per_s * (1 - self.share) / self.share

    def left(self, model_bytes: float, length_s: float) -> float:
        """The part of a NIC that so much in so long leaves to KV; never less than its share under contention."""
        return 1 - min(model_bytes / (self.bytes_per_s * length_s), MODEL_SHARE)
