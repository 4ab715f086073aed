"""Whatever is stored by the index is on storage, however writes, deletions and the news of both overtake each other."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.store.blocks import key_of

from dualpath.core.ids import BlockKey
from dualpath.store.deletions import Deletions
from dualpath.store.index import BlockIndex, BlockState

NUM_KEYS = 3
SIZE_BYTES = 10
KEYS = [key_of(number) for number in range(NUM_KEYS)]
keys = st.sampled_from(KEYS)


@dataclass
class Attempt:
    """Writes blocks as an engine does, without asking; its news come in order and late."""

    writer: int
    news: deque[tuple[str, BlockKey]] = field(default_factory=deque)
    under_way: set[BlockKey] = field(default_factory=set)
    announced: set[BlockKey] = field(default_factory=set)


class Races(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index = BlockIndex(SIZE_BYTES)
        self.storage: set[BlockKey] = set()
        self.attempts: list[Attempt] = []
        self.to_delete: list[BlockKey] = []
        self.to_say_deleted: list[tuple[BlockKey, bool]] = []
        self.answers: list[tuple[BlockKey, bool]] = []
        self.unheard: set[BlockKey] = set()  # on storage, and nobody says so any more

    @precondition(lambda self: len(self.attempts) < 3)
    @rule()
    def begin_attempt(self) -> None:
        self.attempts.append(Attempt(self.index.open_writer()))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), key=keys)
    def engine_begins_to_write(self, data: st.DataObject, key: BlockKey) -> None:
        attempt = data.draw(st.sampled_from(self.attempts))
        attempt.under_way.add(key)
        attempt.news.append(("writing", key))

    @precondition(lambda self: any(attempt.under_way for attempt in self.attempts))
    @rule(data=st.data(), is_good=st.booleans())
    def engine_ends_a_write(self, data: st.DataObject, is_good: bool) -> None:
        attempt = data.draw(st.sampled_from([attempt for attempt in self.attempts if attempt.under_way]))
        key = data.draw(st.sampled_from(sorted(attempt.under_way)))
        attempt.under_way.remove(key)
        if is_good:
            self.storage.add(key)
        attempt.news.append(("durable" if is_good else "failed", key))

    @precondition(lambda self: any(attempt.news for attempt in self.attempts))
    @rule(data=st.data())
    def news_arrive(self, data: st.DataObject) -> None:
        """As dualpath.scheduler.blocks.WriteLedger passes them on."""
        attempt = data.draw(st.sampled_from([attempt for attempt in self.attempts if attempt.news]))
        kind, key = attempt.news.popleft()
        if kind != "failed" and self.index.begin_write(key, None):
            attempt.announced.add(key)
        if kind == "durable":
            attempt.announced.discard(key)
            self.index.publish(key)
        elif kind == "failed" and key in attempt.announced:
            attempt.announced.remove(key)
            self.index.fail_write(key)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def end_attempt(self, data: st.DataObject) -> None:
        """What it still writes may land on storage; nobody hears of it."""
        attempt = data.draw(st.sampled_from(self.attempts))
        self.attempts.remove(attempt)
        for key in sorted(attempt.announced):
            self.index.fail_write(key)
        self.unheard.update(key for kind, key in attempt.news if kind == "durable")
        self.index.close_writer(attempt.writer)

    @rule(key=keys)
    def a_block_is_written(self, key: BlockKey) -> None:
        """The common case: all at once."""
        writer = self.index.open_writer()
        self.storage.add(key)
        self.unheard.discard(key)
        self.index.begin_write(key, None)
        self.index.publish(key)
        self.index.close_writer(writer)

    @rule()
    def evict(self) -> None:
        self.to_delete += self.index.evict_to(0, 1)

    @rule()
    def delete_useless(self) -> None:
        self.to_delete += self.index.take_useless(1)

    @precondition(lambda self: self.to_delete)
    @rule(data=st.data(), is_good=st.booleans())
    def storage_deletes(self, data: st.DataObject, is_good: bool) -> None:
        key = data.draw(st.sampled_from(self.to_delete))
        self.to_delete.remove(key)
        if is_good:
            self.storage.discard(key)
            self.unheard.discard(key)
        self.to_say_deleted.append((key, is_good))

    @precondition(lambda self: self.to_say_deleted)
    @rule()
    def storage_says_deleted(self) -> None:
        key, is_good = self.to_say_deleted.pop(0)
        self.index.deleted([key])
        if not is_good:
            self.index.leave([key])

    @precondition(lambda self: not self.answers)
    @rule()
    def storage_is_asked(self) -> None:
        self.answers = [(key, key in self.storage) for key in self.index.doubts(10)]

    @precondition(lambda self: self.answers)
    @rule()
    def storage_answers(self) -> None:
        key, is_stored = self.answers.pop()
        self.index.settle(key, is_stored=is_stored)

    @rule(key=keys)
    def a_read_finds_it_damaged(self, key: BlockKey) -> None:
        self.index.forget(key)

    @invariant()
    def stored_means_stored(self) -> None:
        for key in KEYS:
            assert self.index.state(key) is not BlockState.STORED or key in self.storage
        self.index.check_integrity()

    def teardown(self) -> None:
        """When all has come to rest, nothing is in doubt and nothing is remembered."""
        for attempt in self.attempts:
            self.index.close_writer(attempt.writer)
        for attempt in self.attempts:
            self.unheard.update(key for kind, key in attempt.news if kind == "durable")
        self.storage.difference_update(self.to_delete)
        self.index.deleted([*self.to_delete, *(key for key, _ in self.to_say_deleted)])
        self.index.leave(key for key, is_good in self.to_say_deleted if not is_good)
        for key, is_stored in self.answers:
            self.index.settle(key, is_stored=is_stored)
        for key in self.index.doubts(10):
            self.index.settle(key, is_stored=key in self.storage)
        self.stored_means_stored()
        counted = {*self.index.known(), *self.index.take_useless(10)}
        assert self.storage - self.unheard <= counted, "storage holds what nobody counts"
        self.index.deleted(counted)
        assert not any(self.index._deletions.is_in_doubt(key) for key in KEYS)


TestRaces = Races.TestCase
TestRaces.settings = settings(max_examples=200, stateful_step_count=40)


def test_a_block_deleted_while_it_was_written_is_not_taken_for_stored() -> None:
    """The news come when the deletion is long over."""
    index = BlockIndex(SIZE_BYTES)
    index.publish(KEYS[0])
    writer = index.open_writer()
    assert index.evict_to(0) == KEYS[:1]
    index.deleted(KEYS[:1])  # and with it what the engine has written meanwhile
    index.begin_write(KEYS[0], None)
    index.publish(KEYS[0])
    assert index.state(KEYS[0]) is BlockState.WRITING
    assert index.doubts(10) == KEYS[:1]
    index.settle(KEYS[0], is_stored=False)
    assert index.state(KEYS[0]) is None
    index.close_writer(writer)
    index.publish(KEYS[0])
    assert index.state(KEYS[0]) is BlockState.STORED, "nobody is left who began before the deletion had ended"


def test_a_doubt_waits_for_the_deletion() -> None:
    index = BlockIndex(SIZE_BYTES)
    index.publish(KEYS[0])
    index.evict_to(0)
    index.publish(KEYS[0])
    assert index.doubts(10) == []
    index.deleted(KEYS[:1])
    assert index.doubts(10) == KEYS[:1]
    index.settle(KEYS[0], is_stored=True)
    assert index.state(KEYS[0]) is BlockState.STORED


def test_a_deletion_that_is_over_does_not_hide_another_of_the_same_block() -> None:
    """The second begins where the first, which is slow, was to make room for a block that came back damaged."""
    index = BlockIndex(SIZE_BYTES)
    index.publish(KEYS[0])
    assert index.evict_to(0) == KEYS[:1]
    index.publish(KEYS[0])
    index.forget(KEYS[0])
    assert index.take_useless(1) == KEYS[:1]
    index.deleted(KEYS[:1])
    index.publish(KEYS[0])
    assert index.state(KEYS[0]) is BlockState.WRITING, "the second may delete it yet"
    assert index.doubts(10) == []
    index.deleted(KEYS[:1])
    assert index.doubts(10) == KEYS[:1]


def test_what_was_published_again_while_storage_was_asked_is_asked_about_again() -> None:
    index = BlockIndex(SIZE_BYTES)
    index.publish(KEYS[0])
    index.open_writer()
    index.deleted(index.evict_to(0))
    index.publish(KEYS[0])
    index.doubts(10)
    index.publish(KEYS[0])  # written again, after storage has looked
    index.settle(KEYS[0], is_stored=False)
    assert index.state(KEYS[0]) is BlockState.WRITING
    assert index.doubts(10) == KEYS[:1]


def test_a_failure_of_another_writer_does_not_end_a_doubt() -> None:
    index = BlockIndex(SIZE_BYTES)
    index.publish(KEYS[0])
    index.open_writer()
    index.deleted(index.evict_to(0))
    index.begin_write(KEYS[0], None)
    index.publish(KEYS[0])
    index.fail_write(KEYS[0])
    assert index.doubts(10) == KEYS[:1]


def test_with_too_many_deletions_to_remember_every_write_of_old_writers_is_in_doubt() -> None:
    deletions = Deletions(max_remembered=2)
    old = deletions.open_writer()
    deletions.end(KEYS)
    young = deletions.open_writer()
    assert all(deletions.is_in_doubt(key) for key in (*KEYS, key_of(99)))
    deletions.close_writer(old)
    assert not any(deletions.is_in_doubt(key) for key in (*KEYS, key_of(99)))
    deletions.close_writer(young)
