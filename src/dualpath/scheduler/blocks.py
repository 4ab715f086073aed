"""Which of a prompt's blocks are stored, and what becomes of the blocks that a request writes.

``KeyChain`` names a request's blocks, computed once and extended as tokens are generated. ``Hits`` asks the block index
for the longest stored chain and keeps it from eviction while it is read. ``WriteLedger`` tells the index about writes:
a block on its way is a hit that the next turn may await, so it must be known before the client sees the last token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from dualpath.core.ids import BlockKey
from dualpath.core.keys import chain_keys, child_key


class IndexView(Protocol):
    """What the scheduler needs of the block index. Event loop only; only ``wait_durable`` waits."""

    num_failed_writes: int  # so far, given up ones included

    def num_blocks(self) -> int: ...

    def used_bytes(self) -> int: ...

    def match(self, keys: Sequence[BlockKey]) -> int:
        """How many leading keys are stored or being written."""
        ...

    def begin_write(self, key: BlockKey, parent: BlockKey | None) -> bool:
        """True: the caller is the block's writer and ends with ``publish`` or ``fail_write``. False: known already."""
        ...

    def publish(self, key: BlockKey) -> None: ...

    def fail_write(self, key: BlockKey) -> None: ...

    def forget(self, key: BlockKey) -> None: ...

    def touch(self, keys: Iterable[BlockKey]) -> None:
        """Count as used now."""
        ...

    async def wait_durable(self, keys: Sequence[BlockKey], timeout_s: float) -> int:
        """Wait until all are stored or one failed or the time is over: how many leading keys are stored."""
        ...

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """Keep the keys from eviction until as many ``unpin``."""
        ...

    def unpin(self, keys: Iterable[BlockKey]) -> None: ...

    def open_writer(self) -> int:
        """Before anything is written that may be published: what is deleted from now on is remembered for it."""
        ...

    def close_writer(self, writer: int) -> None:
        """It publishes nothing any more."""
        ...

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


class KeyChain:
    """Keys of all complete blocks of a growing token sequence."""

    def __init__(self, root: BlockKey, token_ids: Sequence[int], block_tokens: int) -> None:
        self._root = root
        self._block_tokens = block_tokens
        self.keys = chain_keys(root, token_ids, block_tokens)
        self._tail = list(token_ids[len(self.keys) * block_tokens :])
        self._position = {key: i for i, key in enumerate(self.keys)}

    def append(self, token_id: int) -> None:
        self._tail.append(token_id)
        if len(self._tail) == self._block_tokens:
            key = child_key(self.keys[-1] if self.keys else self._root, self._tail)
            self._position[key] = len(self.keys)
            self.keys.append(key)
            self._tail.clear()

    def parent(self, key: BlockKey) -> BlockKey | None:
        """The key before it; the namespace's root before the first. None: not a key of this chain."""
        position = self._position.get(key)
        if position is None:
            return None
        return self.keys[position - 1] if position else self._root


@dataclass(frozen=True, slots=True)
class Hits:
    """Finds and holds the stored part of a prompt."""

    index: IndexView
    block_tokens: int
    durable_timeout_s: float

    def candidates(self, chain: KeyChain, num_prompt_tokens: int) -> tuple[BlockKey, ...]:
        """Keys of the longest known chain that leaves at least one token to compute (its logits are needed)."""
        most = (num_prompt_tokens - 1) // self.block_tokens
        keys = tuple(chain.keys[:most])
        return keys[: self.index.match(keys)]

    @contextmanager
    def pinned(self, keys: Sequence[BlockKey]) -> Iterator[None]:
        self.index.pin(keys)
        try:
            yield
        finally:
            self.index.unpin(keys)

    async def durable(self, keys: Sequence[BlockKey]) -> Sequence[BlockKey]:
        """The leading keys that are on storage, after waiting for those being written."""
        if not keys:
            return keys
        stored = keys[: await self.index.wait_durable(keys, self.durable_timeout_s)]
        self.index.touch(stored)
        return stored


class WriteLedger:
    """One attempt's writes. Whatever has not ended when the attempt does is given up in ``close``.

    Several attempts may write the same block; the first to announce it is its writer, any of them may publish it.
    """

    def __init__(self, index: IndexView, chain: KeyChain) -> None:
        self._index = index
        self._chain = chain
        self._writer: int | None = None
        self._open: dict[BlockKey, None] = {}

    def begin(self) -> None:
        """Before the engine can write anything; ``close`` follows."""
        self._writer = self._index.open_writer()

    def writing(self, keys: Iterable[BlockKey]) -> None:
        for key in keys:
            parent = self._chain.parent(key)
            if parent is not None and self._index.begin_write(key, parent):
                self._open[key] = None

    def durable(self, keys: Sequence[BlockKey]) -> None:
        self.writing(key for key in keys if key not in self._open)
        for key in keys:
            if self._chain.parent(key) is not None:
                self._open.pop(key, None)
                self._index.publish(key)

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
