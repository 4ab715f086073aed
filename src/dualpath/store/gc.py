"""``dualpath store gc``: makes a store smaller from outside, without a server and without any model.

A running server may go on meanwhile: a block that its index knows and that is gone is a miss, no error.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from dualpath.core.errors import ConfigError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.store.inspect import IN_USE_S, BlockRow, NamespaceSummary, iter_rows, summarize_rows
from dualpath.store.open import open_folder

_BlockId = tuple[bytes, BlockKey]  # (namespace digest, key)


@dataclass(frozen=True, slots=True)
class NamespaceShare:
    """What becomes of one namespace."""

    namespace: NamespaceSummary
    num_deleted: int
    deleted_bytes: int


@dataclass(frozen=True, slots=True)
class Collected:
    num_blocks: int  # looked at
    num_bytes: int
    num_deleted: int
    deleted_bytes: int
    num_swept: int  # temporaries of dead writers
    shares: tuple[NamespaceShare, ...]  # the largest namespace first


def collect(
    url: str,
    *,
    capacity_bytes: int | None = None,
    namespace: bytes | None = None,
    keep_latest: int | None = None,
    dry_run: bool = False,
) -> Collected:
    """Delete damaged blocks; a whole ``namespace`` if one is named; all but the ``keep_latest`` namespaces of each
    geometry that were used last, those in use counted and always kept; and then blocks until ``capacity_bytes`` hold
    the rest. Raises ConfigError for the URL, or a ``namespace`` that is in use, and StoreError where storage refuses.

    What goes first is the end of the chain that was written longest ago, so that no prefix is cut in the middle; what
    a running server uses goes last.
    """
    folder = open_folder(url)
    rows = list(iter_rows(url))
    summaries = summarize_rows(folder, rows)
    gone = _former(summaries, keep_latest)
    if namespace is not None:
        for one in _whole(summaries, namespace):
            _check_unused(summaries, one)
            gone.add(one)
    doomed = [row for row in rows if row.is_damaged or row.namespace_digest in gone]
    if capacity_bytes is not None:
        chosen = {row.path for row in doomed}
        used = {summary.namespace_digest for summary in summaries if summary.is_in_use}
        doomed += choose(capacity_bytes, (row for row in rows if row.path not in chosen), used)
    num_swept = 0
    if not dry_run:
        for digest in gone:
            folder.delete_note(digest)  # first: that of a server which begins to use them meanwhile stays
        for row in doomed:
            folder.delete(row.entry)
        num_swept = folder.sweep()
    total_bytes, deleted_bytes = (sum(row.num_bytes for row in some) for some in (rows, doomed))
    return Collected(len(rows), total_bytes, len(doomed), deleted_bytes, num_swept, _shares(summaries, doomed))


def _former(summaries: Iterable[NamespaceSummary], keep_latest: int | None) -> set[bytes]:
    """Namespaces with ``keep_latest`` others that were used later. Models of other shapes do not count for each other;
    where no header can be read nothing is known, and nothing goes.
    """
    if keep_latest is None:
        return set()
    num_later: Counter[frozenset[KvGeometry]] = Counter()
    former = set[bytes]()
    wholes: dict[str, list[NamespaceSummary]] = {}
    for summary in summaries:
        wholes.setdefault(_name_of_whole(summary), []).append(summary)
    by_use = sorted(
        (not any(one.is_in_use for one in ones), min(one.unused_s for one in ones), name)
        for name, ones in wholes.items()
    )
    for is_unused, _, name in by_use:
        kind = frozenset(geometry for one in wholes[name] for geometry in one.geometries)
        if kind and num_later[kind] >= keep_latest and is_unused:
            former.update(one.namespace_digest for one in wholes[name])
        num_later[kind] += 1
    return former


def _name_of_whole(summary: NamespaceSummary) -> str:
    """Ranks of one engine have a namespace each for their parts of its blocks."""
    return (summary.note.whole if summary.note else "") or summary.namespace_digest.hex()


def _whole(summaries: Iterable[NamespaceSummary], namespace: bytes) -> set[bytes]:
    """This one and those that have the other parts of its blocks."""
    names = {summary.namespace_digest: _name_of_whole(summary) for summary in summaries}
    name = names.get(namespace, namespace.hex())
    return {namespace} | {one for one, its_name in names.items() if its_name == name}


def _check_unused(summaries: Iterable[NamespaceSummary], namespace: bytes) -> None:
    for summary in summaries:
        if summary.namespace_digest == namespace and summary.is_in_use:
            raise ConfigError(
                f"the namespace {namespace.hex()} is in use: {summary.unused_s:.0f} s ago a server said so or wrote a "
                f"block; {IN_USE_S:.0f} s after its end the namespace may go"
            )


def _shares(summaries: Iterable[NamespaceSummary], doomed: Iterable[BlockRow]) -> tuple[NamespaceShare, ...]:
    num_deleted: Counter[bytes] = Counter()
    num_bytes: Counter[bytes] = Counter()
    for row in doomed:
        num_deleted[row.namespace_digest] += 1
        num_bytes[row.namespace_digest] += row.num_bytes
    digests = ((summary, summary.namespace_digest) for summary in summaries)
    return tuple(NamespaceShare(summary, num_deleted[digest], num_bytes[digest]) for summary, digest in digests)


def choose(capacity_bytes: int, rows: Iterable[BlockRow], used: Collection[bytes] = ()) -> list[BlockRow]:
    """Blocks to delete, in order: always the oldest one that no other block continues, those of ``used`` namespaces
    after all others.
    """
    by_id: dict[_BlockId, BlockRow] = {(row.namespace_digest, row.key): row for row in rows}
    parents = {block: (row.namespace_digest, row.header.parent) for block, row in by_id.items() if row.header}
    num_children = Counter(parents.values())
    leaves = [(block[0] in used, -row.age_s, block) for block, row in by_id.items() if not num_children[block]]
    heapq.heapify(leaves)
    used_bytes = sum(row.num_bytes for row in by_id.values())
    chosen: list[BlockRow] = []
    while used_bytes > capacity_bytes and leaves:
        *_, block = heapq.heappop(leaves)
        chosen.append(by_id[block])
        used_bytes -= by_id[block].num_bytes
        parent = parents.get(block)
        if parent is None:
            continue
        num_children[parent] -= 1
        if not num_children[parent] and parent in by_id:
            heapq.heappush(leaves, (parent[0] in used, -by_id[parent].age_s, parent))
    return chosen
