"""Fills in, after a start, the parents that a listing does not tell: reads headers in a thread, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

from dualpath.core.errors import BlockCorruptError, BlockMissingError, StoreError
from dualpath.core.ids import BlockKey
from dualpath.core.runtime import Runtime
from dualpath.store.contract import BlockStore
from dualpath.store.header import parse_header
from dualpath.store.index import BlockIndex

_LEARNT_PER_TURN = 32


async def learn_parents(
    index: BlockIndex, store: BlockStore, runtime: Runtime, batch_blocks: int = 256
) -> list[BlockKey]:
    """Read every header that the index needs, without holding up the event loop. Returns damaged blocks: delete them.

    Missing and damaged blocks are forgotten. A block whose header cannot be read now counts as the first of a chain.
    One call at a time, and no deadline: storage that hangs keeps one thread, and nobody waits for the result.
    """
    damaged: list[BlockKey] = []
    gone: list[BlockKey] = []
    while keys := index.unknown_parents(batch_blocks):
        answers = await runtime.to_thread(_read_parents, store, keys)
        for number, (key, found) in enumerate(zip(keys, answers, strict=True)):
            if isinstance(found, BlockCorruptError):
                damaged.append(key)
            if isinstance(found, BlockCorruptError | BlockMissingError):
                gone.append(key)
            index.learn_parent(key, None if isinstance(found, StoreError) else found)
            if number % _LEARNT_PER_TURN == 0:
                await runtime.sleep_s(0)
    for number, key in enumerate(gone):  # last, when what lies behind them is known
        index.forget(key)
        if number % _LEARNT_PER_TURN == 0:
            await runtime.sleep_s(0)
    return damaged


def _read_parents(store: BlockStore, keys: Sequence[BlockKey]) -> list[BlockKey | StoreError]:
    return [_read_parent(store, key) for key in keys]


def _read_parent(store: BlockStore, key: BlockKey) -> BlockKey | StoreError:
    try:
        header = parse_header(store.read_header(key))
    except StoreError as error:
        return error
    if (header.key, header.namespace_digest) != (key, store.namespace_digest):
        return BlockCorruptError(f"block {key.hex()}: holds another block")
    return header.parent
