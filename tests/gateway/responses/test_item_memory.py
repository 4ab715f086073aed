"""Items are kept within bounds, oldest gone first, each for its owner only."""

from __future__ import annotations

from dualpath.gateway.responses.item_memory import ItemMemory


def test_items_are_found_by_their_owner() -> None:
    memory = ItemMemory()
    memory.keep(b"a", [{"id": "msg_1", "text": "é"}])
    assert memory.recall(b"a", "msg_1") == {"id": "msg_1", "text": "é"}
    for owner, item_id in ((b"b", "msg_1"), (None, "msg_1"), (b"a", "msg_2"), (b"a", None), (b"a", [1])):
        assert memory.recall(owner, item_id) is None


def test_the_oldest_go_first() -> None:
    memory = ItemMemory(max_bytes=1000)
    for number in range(10):
        memory.keep(None, [{"id": str(number), "text": "x" * 300}])
    kept = [number for number in range(10) if memory.recall(None, str(number))]
    assert kept == [7, 8, 9]
    memory.keep(None, [{"id": "large", "text": "x" * 2000}])
    assert not any(memory.recall(None, item_id) for item_id in ("8", "9", "large"))
    memory.keep(None, [{"id": "small", "text": "x"}])
    assert memory.recall(None, "small")
