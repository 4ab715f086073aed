"""Read plans: which of a request's hit blocks are read through which side's storage NIC."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(str, Enum):
    """What an engine does; also the side a block is read on."""

    PREFILL = "prefill"
    DECODE = "decode"


class Direction(str, Enum):
    """Which way KV crosses the compute network."""

    DECODE_TO_PREFILL = "decode_to_prefill"
    PREFILL_TO_DECODE = "prefill_to_decode"


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Hit blocks ``[0, num_prefill_blocks)`` are read on the prefill side, the others on the decode side."""

    num_hit_blocks: int
    num_prefill_blocks: int

    def __post_init__(self) -> None:
        if not 0 <= self.num_prefill_blocks <= self.num_hit_blocks:
            raise ValueError(
                f"not a plan: {self.num_prefill_blocks} of {self.num_hit_blocks} blocks on the prefill side"
            )

    @property
    def num_decode_blocks(self) -> int:
        return self.num_hit_blocks - self.num_prefill_blocks

    @property
    def path(self) -> str:
        """One of "none" (nothing to read), "prefill", "decode", "split"."""
        if self.num_hit_blocks == 0:
            return "none"
        if self.num_decode_blocks == 0:
            return "prefill"
        return "decode" if self.num_prefill_blocks == 0 else "split"
