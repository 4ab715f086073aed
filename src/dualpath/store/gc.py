"""``dualpath store gc``: makes a store smaller from outside, without a server and without any model.

A running server may go on meanwhile: a block that its index knows and that is gone is a miss, no error.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from dualpath.core.ids import BlockKey
from dualpath.store.folder import open_folder
from dualpath.store.inspect import BlockRow, iter_rows

_BlockId = tuple[bytes, BlockKey]  # (namespace digest, key)


@dataclass(frozen=True, slots=True)
class Collected:
    num_blocks: int  # looked at
    num_bytes: int
    num_deleted: int
    deleted_bytes: int
    num_swept: int  # temporaries of dead writers


def collect(
    url: str, *, capacity_bytes: int | None = None, namespace: bytes | None = None, dry_run: bool = False
) -> Collected:
    """Delete damaged blocks, a whole ``namespace`` if one is named, and then blocks until ``capacity_bytes`` hold the
    rest. Raises ConfigError for the URL and StoreError where storage refuses.

    What goes first is the end of the chain that was written longest ago, so that no prefix is cut in the middle.
    """
    folder = open_folder(url)
    rows = list(iter_rows(url))
    doomed = [row for row in rows if row.is_damaged or row.namespace_digest == namespace]
    if capacity_bytes is not None:
        chosen = {row.path for row in doomed}
        doomed += choose(capacity_bytes, (row for row in rows if row.path not in chosen))
    num_swept = 0
    if not dry_run:
        for row in doomed:
            folder.delete(row.entry)
        num_swept = folder.sweep()
    total_bytes, deleted_bytes = (sum(row.num_bytes for row in some) for some in (rows, doomed))
    return Collected(len(rows), total_bytes, len(doomed), deleted_bytes, num_swept)


def choose(capacity_bytes: int, rows: Iterable[BlockRow]) -> list[BlockRow]:
    """Blocks to delete, in order: always the oldest one that no other block continues."""
    by_id: dict[_BlockId, BlockRow] = {(row.namespace_digest, row.key): row for row in rows}
    parents = {block: (row.namespace_digest, row.header.parent) for block, row in by_id.items() if row.header}
    num_children = Counter(parents.values())
    leaves = [(-row.age_s, block) for block, row in by_id.items() if not num_children[block]]
    heapq.heapify(leaves)
    used_bytes = sum(row.num_bytes for row in by_id.values())
    chosen: list[BlockRow] = []
    while used_bytes > capacity_bytes and leaves:
        _, block = heapq.heappop(leaves)
        chosen.append(by_id[block])
        used_bytes -= by_id[block].num_bytes
        parent = parents.get(block)
        if parent is None:
            continue
        num_children[parent] -= 1
        if not num_children[parent] and parent in by_id:
            heapq.heappush(leaves, (-by_id[parent].age_s, parent))
    return chosen
