"""Looks into a directory of blocks without knowing any model: what ``dualpath store ls`` and ``verify`` show.

Every header names its namespace, key, parent and geometry, so the files explain themselves. Plain reads, one file at
a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dualpath.core.errors import BlockCorruptError, BlockMissingError, ConfigError, StoreError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.core.keys import KEY_BYTES
from dualpath.store.files import parse_key, scan_files, store_error
from dualpath.store.header import HEADER_BYTES, Header, parse_header, verify
from dualpath.store.open import parse_url


@dataclass(frozen=True, slots=True)
class BlockRow:
    """One object. ``header`` is None where it cannot be read, and ``problem`` says why."""

    namespace_digest: bytes
    key: BlockKey
    path: str
    num_bytes: int
    age_s: float
    header: Header | None
    problem: str = ""


@dataclass(slots=True)
class NamespaceSummary:
    namespace_digest: bytes
    num_blocks: int = 0
    num_bytes: int = 0
    num_damaged: int = 0  # header unreadable, or not the block that the name says
    youngest_s: float = float("inf")
    oldest_s: float = 0.0
    geometries: set[KvGeometry] = field(default_factory=set)  # one, unless something is wrong


@dataclass(frozen=True, slots=True)
class Problem:
    row: BlockRow
    reason: str
    is_deleted: bool


def iter_rows(url: str) -> Iterator[BlockRow]:
    """Every block of every namespace, with its header. Blocks deleted meanwhile are left out."""
    for directory, namespace_digest in _namespaces(url):
        for entry in scan_files(directory):
            key = parse_key(entry.name)
            if key is None:
                continue
            try:
                stat = entry.stat()
                row = _read_row(entry.path, namespace_digest, key, stat.st_size, time.time() - stat.st_mtime)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise store_error(error, key) from error
            yield row


def summarize(url: str) -> list[NamespaceSummary]:
    """One row per namespace, in order of size, the largest first."""
    summaries: dict[bytes, NamespaceSummary] = {}
    for row in iter_rows(url):
        summary = summaries.setdefault(row.namespace_digest, NamespaceSummary(row.namespace_digest))
        summary.num_blocks += 1
        summary.num_bytes += row.num_bytes
        summary.num_damaged += row.header is None
        summary.youngest_s = min(summary.youngest_s, row.age_s)
        summary.oldest_s = max(summary.oldest_s, row.age_s)
        if row.header is not None:
            summary.geometries.add(row.header.geometry)
    return sorted(summaries.values(), key=lambda summary: -summary.num_bytes)


def verify_blocks(url: str, *, delete: bool = False) -> Iterator[Problem]:
    """Read every object in full, check header and checksum, and yield what is wrong. ``delete`` removes the damaged
    ones.

    A block that could not be read (permissions, I/O error) is a problem, too, but is never deleted.
    """
    for row in iter_rows(url):
        try:
            _verify_row(row)
        except BlockMissingError:
            continue
        except BlockCorruptError as error:
            yield Problem(row, str(error), is_deleted=delete and _delete(row))
        except StoreError as error:
            yield Problem(row, str(error), is_deleted=False)


def _namespaces(url: str) -> Iterator[tuple[str, bytes]]:
    scheme, root, _ = parse_url(url)
    if scheme != "file":
        raise ConfigError(f"{url}: only file stores can be inspected")
    if not Path(root).is_dir():
        raise ConfigError(f"{url}: there is no such directory")
    for name in sorted(os.listdir(root)):
        path = os.path.join(root, name)
        if len(name) == 2 * KEY_BYTES and set(name) <= set("0123456789abcdef") and os.path.isdir(path):
            yield path, bytes.fromhex(name)


def _read_row(path: str, namespace_digest: bytes, key: BlockKey, num_bytes: int, age_s: float) -> BlockRow:
    header, problem = None, ""
    try:
        with open(path, "rb", buffering=0) as file:
            header = parse_header(file.read(HEADER_BYTES))
        if (header.namespace_digest, header.key) != (namespace_digest, key):
            header, problem = None, "holds another block than its name says"
    except BlockCorruptError as error:
        problem = str(error)
    except FileNotFoundError:
        raise
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    return BlockRow(namespace_digest, key, path, num_bytes, age_s, header, problem)


def _verify_row(row: BlockRow) -> None:
    try:
        data = Path(row.path).read_bytes()
    except OSError as error:
        raise store_error(error, row.key) from error
    try:
        geometry = parse_header(data).geometry
    except BlockCorruptError as error:
        raise BlockCorruptError(f"block {row.key.hex()}: {error}") from None
    verify(memoryview(data), row.namespace_digest, row.key, geometry)


def _delete(row: BlockRow) -> bool:
    """False where it is gone already or the file system refuses."""
    try:
        os.unlink(row.path)
    except OSError:
        return False
    return True
