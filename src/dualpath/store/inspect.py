"""Looks into a directory or bucket of blocks without knowing any model: ``dualpath store ls`` and ``verify``.

Every header names its namespace, key, parent and geometry, so the objects explain themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from dualpath.core.errors import BlockCorruptError, BlockMissingError, StoreError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.core.runtime import SystemRuntime
from dualpath.store.folder import Folder, FolderEntry
from dualpath.store.header import HEADER_BYTES, Header, parse_header, verify
from dualpath.store.open import open_folder
from dualpath.store.weights_note import WeightsNote

IN_USE_S = 300.0  # without news; blocks of a server that has just ended count as in use, too


@dataclass(frozen=True, slots=True)
class BlockRow:
    """One object. ``header`` is None where it cannot be read, and ``problem`` says why."""

    entry: FolderEntry
    age_s: float
    header: Header | None
    problem: str = ""
    is_damaged: bool = False  # its bytes were read, and they are not this block

    @property
    def namespace_digest(self) -> bytes:
        return self.entry.namespace_digest

    @property
    def key(self) -> BlockKey:
        return self.entry.key

    @property
    def path(self) -> str:
        return self.entry.name

    @property
    def num_bytes(self) -> int:
        return self.entry.num_bytes


@dataclass(slots=True)
class NamespaceSummary:
    namespace_digest: bytes
    num_blocks: int = 0
    num_bytes: int = 0
    num_damaged: int = 0  # header unreadable, or not the block that the name says
    youngest_s: float = float("inf")
    oldest_s: float = 0.0
    geometries: set[KvGeometry] = field(default_factory=set)  # one, unless something is wrong
    note: WeightsNote | None = None  # whose they are, where a server has said so

    def add(self, row: BlockRow) -> None:
        self.num_blocks += 1
        self.num_bytes += row.num_bytes
        self.num_damaged += row.header is None
        self.youngest_s = min(self.youngest_s, row.age_s)
        self.oldest_s = max(self.oldest_s, row.age_s)
        if row.header is not None:
            self.geometries.add(row.header.geometry)

    @property
    def is_in_use(self) -> bool:
        """There is news of less than five minutes ago."""
        return self.unused_s < IN_USE_S

    @property
    def unused_s(self) -> float:
        """Since a block was written or a server has said that it uses them."""
        if self.note is None:
            return self.youngest_s
        return min(self.youngest_s, SystemRuntime().unix_s() - self.note.used_unix_s)


@dataclass(frozen=True, slots=True)
class Problem:
    row: BlockRow
    reason: str
    is_deleted: bool


def iter_rows(url: str) -> Iterator[BlockRow]:
    """Every block of every namespace, with its header. Blocks deleted meanwhile are left out."""
    yield from _iter_rows(open_folder(url))


def summarize(url: str) -> list[NamespaceSummary]:
    """One row per namespace, in order of size, the largest first."""
    folder = open_folder(url)
    return summarize_rows(folder, _iter_rows(folder))


def summarize_rows(folder: Folder, rows: Iterable[BlockRow]) -> list[NamespaceSummary]:
    summaries: dict[bytes, NamespaceSummary] = {}
    for row in rows:
        summaries.setdefault(row.namespace_digest, NamespaceSummary(row.namespace_digest)).add(row)
    for summary in summaries.values():
        summary.note = folder.read_note(summary.namespace_digest)
    return sorted(summaries.values(), key=lambda summary: -summary.num_bytes)


def verify_blocks(url: str, *, delete: bool = False) -> Iterator[Problem]:
    """Read every object in full, check header and checksum, and yield what is wrong. ``delete`` removes the damaged
    ones.

    A block that could not be read (permissions, I/O error) is a problem, too, but is never deleted.
    """
    folder = open_folder(url)
    for row in _iter_rows(folder):
        try:
            _verify_row(folder, row)
        except BlockMissingError:
            continue
        except BlockCorruptError as error:
            yield Problem(row, str(error), is_deleted=delete and _delete(folder, row))
        except StoreError as error:
            yield Problem(row, str(error), is_deleted=False)


def _iter_rows(folder: Folder) -> Iterator[BlockRow]:
    for entry in folder.entries():
        header, problem, is_damaged = None, "", False
        try:
            header = parse_header(folder.read(entry, HEADER_BYTES))
            if (header.namespace_digest, header.key) != (entry.namespace_digest, entry.key):
                raise BlockCorruptError("holds another block than its name says")
        except BlockMissingError:
            continue
        except BlockCorruptError as error:
            header, problem, is_damaged = None, str(error), True
        except StoreError as error:
            problem = f"cannot be read: {error}"
        yield BlockRow(entry, SystemRuntime().unix_s() - entry.modified_unix_s, header, problem, is_damaged)


def _verify_row(folder: Folder, row: BlockRow) -> None:
    data = folder.read(row.entry)
    try:
        geometry = parse_header(data).geometry
    except BlockCorruptError as error:
        raise BlockCorruptError(f"block {row.key.hex()}: {error}") from None
    verify(memoryview(data), row.namespace_digest, row.key, geometry)


def _delete(folder: Folder, row: BlockRow) -> bool:
    """False where storage refuses."""
    try:
        folder.delete(row.entry)
    except StoreError:
        return False
    return True
