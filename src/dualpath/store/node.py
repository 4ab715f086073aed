"""What the index knows of one block."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dualpath.core.eviction_queue import Shelf
from dualpath.core.ids import BlockKey


class BlockState(Enum):
    WRITING = "writing"
    STORED = "stored"


@dataclass(slots=True, eq=False)
class Node:
    """What the index knows of one block."""

    key: BlockKey
    state: BlockState
    last_use: int
    shelf: Shelf
    parent: BlockKey | None = None  # None: first of its chain, or not known yet
    is_parent_known: bool = False
    is_unreachable: bool = False  # some block before it was lost
    is_queued: bool = False
    is_replacing: bool = False  # there is an object of its name, of no use, until it is stored
