"""Which part of a KV row is whose: a Layer Block has all heads, a rank computes with some of them.

Staging, network and storage see whole rows always, so blocks are the same however many ranks made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from dualpath.models.layout import GqaLayout, KvLayout


class Shares(Protocol):
    """Rows are ``uint8 [num_rows, bytes]``, contiguous: whole ones, or one rank's part of them."""

    @property
    def layout(self) -> KvLayout:
        """Of one rank's part."""
        ...

    @property
    def is_replicated(self) -> bool:
        """Every rank has whole rows, and computes all of them itself."""
        ...

    def split(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Each rank's part of whole rows."""
        ...

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Whole rows again."""
        ...


@dataclass(frozen=True, slots=True)
class HeadShares:
    """Grouped-query attention: rank r has KV heads ``[r * n, (r + 1) * n)``, as column-wise projections do."""

    layout: GqaLayout
    world: int
    is_replicated: bool = False

    @classmethod
    def of(cls, whole: GqaLayout, world: int) -> HeadShares:
        return cls(GqaLayout(whole.dtype, whole.kv_heads // world, whole.head_dim), world)

    def split(self, rows: torch.Tensor) -> list[torch.Tensor]:
        keys_and_values = rows.view(len(rows), 2, self.world, -1)
        return [keys_and_values[:, :, rank].reshape(len(rows), -1) for rank in range(self.world)]

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack([part.view(len(part), 2, -1) for part in parts], dim=2).flatten(1)


@dataclass(frozen=True, slots=True)
class WholeRows:
    """Latent attention: all heads read the same latent, so each rank needs, and makes, whole rows."""

    layout: KvLayout
    world: int
    is_replicated: bool = True

    def split(self, rows: torch.Tensor) -> list[torch.Tensor]:
        return [rows] * self.world

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return parts[0]


def shares_of(whole: KvLayout, world: int) -> Shares:
    return HeadShares.of(whole, world) if isinstance(whole, GqaLayout) else WholeRows(whole, world)
