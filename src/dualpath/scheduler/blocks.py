"""Which of a prompt's blocks are stored, and what becomes of the blocks that a request writes.

``BlockHashes`` names a request's blocks, computed once and extended as tokens are generated. ``WriteLedger`` tells the
index about writes: a block on its way is a hit that the next turn may await, so it must be known before the client sees
the last token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from dualpath.core.ids import BlockKey
from dualpath.core.keys import KnownPrefixes, chain_keys, child_key
from dualpath.store.index import Shelf

_POSITIONS_AT_ONCE = 16


class IndexView(Protocol):
    """What the scheduler needs of the block index. Event loop only; only ``wait_durable`` waits."""

    object_bytes: int  # of each block
    num_failed_writes: int  # so far, given up ones included
    shelf: Shelf  # of the namespace that requests use now

    def use_namespace(self, namespace_digest: bytes) -> None:
        """From now on requests use it: what was used before goes first."""
        ...

    def num_blocks(self) -> int: ...

    def used_bytes(self) -> int: ...

    def match(self, keys: Sequence[BlockKey]) -> int:
        """How many leading keys are stored or being written."""
        ...

    def begin_write(self, key: BlockKey, parent: BlockKey | None, shelf: Shelf | None = None) -> bool:
        """True: the caller is the block's writer and ends with ``publish`` or ``fail_write``. False: known already."""
        ...

    def publish(self, key: BlockKey, shelf: Shelf | None = None, *, is_doubted: bool = False) -> None:
        """It is stored. ``is_doubted``: it may have been deleted since, by whom this index knows nothing of."""
        ...

    def fail_write(self, key: BlockKey) -> None: ...

    def forget(self, key: BlockKey) -> None: ...

    def touch(self, key: BlockKey) -> None:
        """Count the block, and all before it, as used now."""
        ...

    async def wait_durable(self, keys: Sequence[BlockKey], timeout_s: float) -> int:
        """Wait until all are stored or one failed or the time is over: how many leading keys are stored."""
        ...

    def pin(self, key: BlockKey) -> None:
        """Keep the block, and all before it, from eviction until as many ``unpin``."""
        ...

    def unpin(self, key: BlockKey) -> None: ...

    def open_writer(self) -> int:
        """Before anything is written that may be published: what is deleted from now on is remembered for it."""
        ...

    def close_writer(self, writer: int) -> None:
        """It publishes nothing any more."""
        ...

    def num_useless(self) -> int:
        """Objects that are on storage and of no use: damaged ones."""
        ...

    def take_useless(self, max_blocks: int) -> Sequence[BlockKey]:
        """Some of them; the caller deletes them, says ``deleted``, and ``leave`` of those that are still there."""
        ...

    def leave(self, keys: Iterable[BlockKey]) -> None: ...

    def evict_to(self, capacity_bytes: float, max_blocks: int) -> Sequence[BlockKey]:
        """Drop least recently used leaves from the index; the caller deletes the objects and then says ``deleted``."""
        ...

    def may_evict(self) -> bool:
        """False: nothing more may go now. True: ``evict_to`` is worth another call, even if it returned nothing."""
        ...

    def deleted(self, keys: Iterable[BlockKey]) -> None:
        """Storage has answered: nothing deletes these any more."""
        ...

    def doubts(self, max_keys: int) -> Sequence[BlockKey]:
        """Published blocks that may have been deleted since: ask storage, and ``settle`` each."""
        ...

    def settle(self, key: BlockKey, *, is_stored: bool) -> None: ...

    def tidy(self, max_blocks: int) -> bool:
        """Do some of the work that can wait. False: there is more."""
        ...


class BlockHashes:
    """Keys of all complete blocks of a growing token sequence."""

    def __init__(
        self, root: BlockKey, token_ids: Sequence[int], block_tokens: int, known: KnownPrefixes | None = None
    ) -> None:
        self._root = root
        self._block_tokens = block_tokens
        self.keys = chain_keys(root, token_ids, block_tokens) if known is None else known.keys(root, token_ids)
        self._tail = list(token_ids[len(self.keys) * block_tokens :])
        # Where keys are, from this one on: those at the end are asked for, and rarely others.
        self._position: dict[BlockKey, int] = {}
        self._positions_from = len(self.keys)

    def append(self, token_id: int) -> None:
        self._tail.append(token_id)
        if len(self._tail) == self._block_tokens:
            key = child_key(self.keys[-1] if self.keys else self._root, self._tail)
            self._position[key] = len(self.keys)
            self.keys.append(key)
            self._tail.clear()

    def parent(self, key: BlockKey) -> BlockKey | None:
        """The key before it; the namespace's root before the first. None: not a key of this chain."""
        while key not in self._position:
            if not self._positions_from:
                return None
            end, self._positions_from = self._positions_from, max(0, self._positions_from - _POSITIONS_AT_ONCE)
            for position in range(self._positions_from, end):
                self._position[self.keys[position]] = position
        position = self._position[key]
        return self.keys[position - 1] if position else self._root


class WriteLedger:
    """One attempt's writes. Whatever has not ended when the attempt does is given up in ``close``.

    Several attempts may write the same block; the first to announce it is its writer, any of them may publish it.
    Blocks come with the one before each: the root for the first of a chain.
    """

    def __init__(self, index: IndexView, shelf: Shelf | None = None, *, is_doubted: bool = False) -> None:
        """``shelf``: of the weights that the attempt is for. ``is_doubted``: it was begun under another index, which
        may have deleted what was written."""
        self._index, self._shelf, self._is_doubted = index, shelf, is_doubted
        self._writer: int | None = None
        self._open: dict[BlockKey, None] = {}

    def begin(self) -> None:
        """Before the engine can write anything; ``close`` follows."""
        if self._writer is None:
            self._writer = self._index.open_writer()

    def writing(self, blocks: Iterable[tuple[BlockKey, BlockKey]]) -> None:
        for key, parent in blocks:
            if self._index.begin_write(key, parent, self._shelf):
                self._open[key] = None

    def durable(self, blocks: Iterable[tuple[BlockKey, BlockKey]]) -> None:
        blocks = tuple(blocks)
        self.writing(block for block in blocks if block[0] not in self._open)
        for key, _ in blocks:
            self._open.pop(key, None)
            self._index.publish(key, self._shelf, is_doubted=self._is_doubted)

    def failed(self, keys: Iterable[BlockKey]) -> None:
        for key in keys:
            if key in self._open:
                del self._open[key]
                self._index.fail_write(key)

    def close(self) -> None:
        self.failed(tuple(self._open))
        if self._writer is not None:
            self._index.close_writer(self._writer)
            self._writer = None
