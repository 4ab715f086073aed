"""A request's blocks by name: which comes before which, and that nobody writes another request's."""

from __future__ import annotations

from dualpath.core.ids import BlockKey
from dualpath.scheduler.blocks import BlockHashes, WriteLedger
from dualpath.scheduler.desk.api import links
from dualpath.store.index import BlockIndex

ROOT, FOREIGN = BlockKey(b"r" * 16), BlockKey(b"f" * 16)


def test_a_block_follows_the_one_before_it_the_first_one_the_root() -> None:
    chain = BlockHashes(ROOT, range(7), 3)
    for token_id in range(7, 10):
        chain.append(token_id)
    assert len(chain.keys) == 3
    assert [chain.parent(key) for key in chain.keys] == [ROOT, *chain.keys[:-1]]
    assert chain.parent(FOREIGN) is None
    assert chain.keys == BlockHashes(ROOT, range(10), 3).keys


def test_a_block_of_another_chain_is_never_said_to_be_written() -> None:
    index = BlockIndex(100)
    chain = BlockHashes(ROOT, range(7), 3)
    ledger = WriteLedger(index)
    ledger.begin()
    ledger.writing(links(chain.parent, [FOREIGN, *chain.keys]))
    ledger.durable(links(chain.parent, [FOREIGN, *chain.keys]))
    assert index.known() == chain.keys
    ledger.close()
