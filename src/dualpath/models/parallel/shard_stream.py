"""The layer streams of a forward that several ranks run: history goes out to them, new rows come back to the leader.

Each rank computes on rows of its own, with its share of every row only, one layer at a time. To the model these are
workspaces like any other. The leader's engine loads and pushes whole Layer Blocks as if it were alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dualpath.models.layout import row_bytes
from dualpath.models.parallel.group import ProcessGroup
from dualpath.models.parallel.shares import Shares
from dualpath.models.seam import LayerStream, PrefillItem


class ForwardAbortedError(Exception):
    """A follower's forward ended because the leader's stream failed. Nothing is wrong with the group."""


def packed(items: Sequence[PrefillItem]) -> list[PrefillItem]:
    """The same requests on rows without gaps: followers need no blocks."""
    out, row = [], 0
    for item in items:
        out.append(PrefillItem(item.token_ids, item.num_cached, row, item.num_logits))
        row += item.num_cached + len(item.token_ids)
    return out


class FollowerStream:
    """A rank's own rows (``seam.LayerStream``). ``items`` as ``packed`` has them."""

    def __init__(self, group: ProcessGroup, shares: Shares, items: Sequence[PrefillItem], device: torch.device) -> None:
        self._group, self._shares, self._device = group, shares, device
        self.items = items
        num_rows = sum(item.num_cached + len(item.token_ids) for item in items)
        self._rows = torch.empty((num_rows, row_bytes(shares.layout)), dtype=torch.uint8, device=device)
        self._num_history = sum(item.num_cached for item in items)

    def acquire(self, layer: int) -> torch.Tensor:
        """Raises ForwardAbortedError when the leader has no history for the layer."""
        if not self._group.tell(True, self._device):
            raise ForwardAbortedError
        self._take_history(None)
        return self._rows

    def release(self, layer: int) -> None:
        if not self._shares.is_replicated:
            self._group.gather(self._new_rows())

    def _take_history(self, parts: Sequence[torch.Tensor] | None) -> None:
        """``parts``: every rank's, at the leader."""
        if not self._num_history:
            return
        own = self._rows.new_empty((self._num_history, self._rows.shape[1]))
        self._group.scatter(own, parts)
        for item, history in zip(self.items, own.split([item.num_cached for item in self.items]), strict=True):
            self._rows[item.row_start : item.row_start + item.num_cached] = history

    def _new_rows(self) -> torch.Tensor:
        return torch.cat([_new_of(self._rows, item) for item in self.items])


class LeaderStream(FollowerStream):
    """The leader's own rows, and between them and the engine's stream whatever the followers need or have made."""

    def __init__(
        self,
        group: ProcessGroup,
        shares: Shares,
        items: Sequence[PrefillItem],
        device: torch.device,
        stream: LayerStream,
    ) -> None:
        super().__init__(group, shares, packed(items), device)
        self._stream, self._engine_items = stream, items
        self._workspace = torch.empty(0)
        self._failure: Exception | None = None

    def acquire(self, layer: int) -> torch.Tensor:
        """Whatever the stream raises, the followers hear of it at this point and are at rest."""
        try:
            if self._failure is not None:
                raise self._failure
            self._workspace = self._stream.acquire(layer)
        except BaseException:
            self._group.tell(False, self._device)
            raise
        self._group.tell(True, self._device)
        self._take_history(self._history_parts())
        return self._rows

    def release(self, layer: int) -> None:
        """Does not raise: followers go on to the next layer, and would wait there."""
        own = self._new_rows()
        new = own if self._shares.is_replicated else self._shares.join(self._group.gather(own))
        for item, rows in zip(self._engine_items, new.split([len(i.token_ids) for i in self.items]), strict=True):
            _new_of(self._workspace, item).copy_(rows)
        try:
            self._stream.release(layer)
        except Exception as error:
            self._failure = error

    def finish(self) -> None:
        """After the forward. Raises what the last layer's release did."""
        if self._failure is not None:
            raise self._failure

    def _history_parts(self) -> list[torch.Tensor]:
        if not self._num_history:
            return []
        history = [self._workspace[item.row_start : item.row_start + item.num_cached] for item in self._engine_items]
        return self._shares.split(torch.cat(history))


def _new_of(rows: torch.Tensor, item: PrefillItem) -> torch.Tensor:
    first = item.row_start + item.num_cached
    return rows[first : first + len(item.token_ids)]
