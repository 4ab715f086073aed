"""How one decode step reads the pool on a CPU: long runs of consecutive blocks in place, the rest gathered.

Attention over a context is computed per block ("piece") and merged by lse. Blocks of all requests, sorted by their
place in the pool, form runs that one strided kernel call covers, whoever owns them. Blocks outside long runs, and
edge blocks (the last, partly filled one; the first one of a sliding window), are copied first; there are few of them
if the allocator prefers runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from dualpath.models.kernels.contract import PagedBatch
from dualpath.models.kernels.merge import Attended, merge_by_owner, merge_padded

MIN_RUN_BLOCKS = 4  # below this, copying a block costs less than one more kernel call
MAX_PADDING = 4  # padded merging is faster, unless contexts are so unequal that padding outweighs them

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Run:
    first_block: int
    num_blocks: int
    first_piece: int  # its pieces are consecutive in the plan's order


@dataclass(slots=True)
class PagedPlan:
    """Valid for every layer of one step with one window. Piece order: runs, gathered full blocks, edge blocks."""

    runs: Sequence[Run]
    owners: torch.Tensor  # int64 [pieces]: the request of each piece
    slots: torch.Tensor | None  # int64 [pieces]: row in a padded [B * max_pieces] merge, None: merge by owner
    num_requests: int
    max_pieces: int
    gathered_blocks: torch.Tensor | None  # int64 [gathered]
    edge_hidden: torch.Tensor | None  # bool [edges, block_tokens]: rows outside the context, the last of the gathered
    hidden_rows: torch.Tensor  # int64: the same, as places among all gathered rows
    _mask: torch.Tensor | None = None
    _buffers: dict[tuple[int, ...], Attended] = field(default_factory=dict)

    def gathered_mask(self, dtype: torch.dtype) -> torch.Tensor | None:
        """Additive ``[gathered, 1, 1, block_tokens]``, or None if every gathered row counts."""
        if self.edge_hidden is None or self.gathered_blocks is None:
            return None
        if self._mask is None:
            edges, block_tokens = self.edge_hidden.shape
            mask = torch.zeros((len(self.gathered_blocks), 1, 1, block_tokens), dtype=dtype)
            mask[-edges:, 0, 0].masked_fill_(self.edge_hidden, -torch.inf)
            self._mask = mask
        return self._mask

    def merge(self, parts: Sequence[Attended]) -> Attended:
        """Parts in piece order, out ``[n, Hkv, G, D]`` -> out ``[B, Hkv, G, D]``, lse ``[B, Hkv, G]``."""
        if self.slots is None:
            out, lse = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            return merge_by_owner(out, lse, self.owners, self.num_requests)
        out, lse = self._padded_buffers(parts[0])
        first = 0
        for part_out, part_lse in parts:
            slots = self.slots[first : first + len(part_out)]
            out.index_copy_(0, slots, part_out)
            lse.index_copy_(0, slots, part_lse)
            first += len(part_out)
        shape = (self.num_requests, self.max_pieces)
        return merge_padded(out.unflatten(0, shape), lse.unflatten(0, shape))

    def _padded_buffers(self, like: Attended) -> Attended:
        """Kept from layer to layer: the same slots are overwritten, the padding stays zero with an lse of -inf."""
        shape = tuple(like[0].shape[1:])
        if shape not in self._buffers:
            rows = self.num_requests * self.max_pieces
            out = like[0].new_zeros((rows, *shape))
            self._buffers[shape] = out, like[1].new_full((rows, *shape[:-1]), -torch.inf)
        return self._buffers[shape]


def plan_pages(batch: PagedBatch, window: int | None) -> PagedPlan:
    """Host work of a few microseconds per request, once per step and window."""
    table = batch.block_table.numpy()
    tokens = batch.block_tokens
    length = np.asarray(batch.length_list, dtype=np.int64)
    start = np.zeros_like(length) if window is None else np.maximum(0, length - window)
    first_full, end_full = -(-start // tokens), length // tokens
    column = np.arange(table.shape[1])
    owners, columns = np.nonzero((column >= first_full[:, None]) & (column < end_full[:, None]))
    blocks = table[owners, columns].astype(np.int64)
    order = np.argsort(blocks, kind="stable")
    in_runs, runs = _find_runs(blocks[order])
    edge_owners, edge_columns = _edges(start, length, tokens)
    piece_owners = np.concatenate((owners[order][in_runs], owners[order][~in_runs], edge_owners))
    gathered = np.concatenate((blocks[order][~in_runs], table[edge_owners, edge_columns].astype(np.int64)))
    position = edge_columns[:, None] * tokens + np.arange(tokens)
    hidden = (position < start[edge_owners, None]) | (position >= length[edge_owners, None])
    slots, max_pieces = _slots(piece_owners, batch.size)
    return PagedPlan(
        runs=runs,
        owners=torch.from_numpy(piece_owners),
        slots=slots,
        num_requests=batch.size,
        max_pieces=max_pieces,
        gathered_blocks=torch.from_numpy(gathered) if len(gathered) else None,
        edge_hidden=torch.from_numpy(hidden) if len(hidden) else None,
        hidden_rows=torch.from_numpy(np.flatnonzero(hidden) + (len(gathered) - len(hidden)) * tokens),
    )


def _find_runs(blocks: _Ints) -> tuple[npt.NDArray[np.bool_], list[Run]]:
    """Runs of at least MIN_RUN_BLOCKS consecutive ids in sorted ``blocks``, and which blocks belong to one."""
    in_runs = np.zeros(len(blocks), dtype=np.bool_)
    runs: list[Run] = []
    if len(blocks) == 0:
        return in_runs, runs
    breaks = np.flatnonzero(np.diff(blocks) != 1) + 1  # a block shared by two requests breaks a run too
    first_piece = 0
    for first, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(blocks)], strict=True):
        if end - first >= MIN_RUN_BLOCKS:
            in_runs[first:end] = True
            runs.append(Run(int(blocks[first]), end - first, first_piece))
            first_piece += end - first
    return in_runs, runs


def _edges(start: _Ints, length: _Ints, tokens: int) -> tuple[_Ints, _Ints]:
    """Owner and block column of every partly visible block."""
    head = np.flatnonzero(start % tokens != 0)
    one_block = start // tokens == length // tokens  # then the head block is the tail block, too
    tail = np.flatnonzero((length % tokens != 0) & ~((start % tokens != 0) & one_block))
    return np.concatenate((head, tail)), np.concatenate((start[head] // tokens, length[tail] // tokens))


def _slots(owners: _Ints, num_requests: int) -> tuple[torch.Tensor | None, int]:
    """Each piece's row in a ``[B, max_pieces]`` table, or None if the table would be mostly padding."""
    counts = np.bincount(owners, minlength=num_requests)
    max_pieces = int(counts.max())
    if num_requests * max_pieces > MAX_PADDING * len(owners) + 256:
        return None, max_pieces
    by_owner = np.argsort(owners, kind="stable")
    rank = np.empty_like(owners)
    rank[by_owner] = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    return torch.from_numpy(owners * max_pieces + rank), max_pieces
