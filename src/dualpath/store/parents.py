"""Fills in, after a start, the parents that a listing does not tell: reads headers in threads, a batch at a time."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dualpath.core.errors import BlockCorruptError, BlockMissingError, StoreError
from dualpath.core.ids import BlockKey
from dualpath.core.runtime import Runtime
from dualpath.store.contract import BlockDirectory
from dualpath.store.directory_calls import DirectoryCalls
from dualpath.store.header import parse_header
from dualpath.store.index import BlockIndex

_log = logging.getLogger(__name__)

_LEARNT_PER_TURN = 32


async def learn_parents(
    index: BlockIndex, store: BlockDirectory, runtime: Runtime, batch_blocks: int = 256, patience_s: float = 30.0
) -> None:
    """Read every header that the index needs, without holding up the event loop.

    Missing and damaged blocks are forgotten. A block whose header cannot be read now counts as the first of a chain,
    and so does a batch without an answer in time: a few calls that hang keep a thread each, and none holds up others.
    """
    calls = DirectoryCalls(runtime, patience_s=patience_s)
    gone: list[BlockKey] = []
    failures: list[StoreError] = []
    while keys := index.unknown_parents(batch_blocks):
        answers: Sequence[BlockKey | StoreError]
        try:
            answers = await calls.call(_read_parents, store, keys)
        except StoreError as error:
            answers = [error] * len(keys)
        for number, (key, found) in enumerate(zip(keys, answers, strict=True)):
            if isinstance(found, BlockCorruptError | BlockMissingError):
                gone.append(key)
            elif isinstance(found, StoreError):
                failures.append(found)
            index.learn_parent(key, None if isinstance(found, StoreError) else found)
            if number % _LEARNT_PER_TURN == 0:
                await runtime.sleep_s(0)
    for number, key in enumerate(gone):  # last, when what lies behind them is known
        index.forget(key)
        if number % _LEARNT_PER_TURN == 0:
            await runtime.sleep_s(0)
    if failures:
        _log.warning("%s: %d headers cannot be read: %s", store.url, len(failures), failures[0])
    if gone:
        _log.warning("%s: %d of the blocks found are damaged or gone; they are deleted", store.url, len(gone))


def _read_parents(store: BlockDirectory, keys: Sequence[BlockKey]) -> list[BlockKey | StoreError]:
    return [_read_parent(store, key) for key in keys]


def _read_parent(store: BlockDirectory, key: BlockKey) -> BlockKey | StoreError:
    try:
        header = parse_header(store.read_header(key))
    except StoreError as error:
        return error
    if header.key != key:
        return BlockCorruptError(f"block {key.hex()}: holds another block")
    return header.parent
