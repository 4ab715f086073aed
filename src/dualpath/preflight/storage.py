"""Does the store take blocks, and does it give them back as fast as the storage NICs are said to be?"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dualpath.config import ServeConfig
from dualpath.core.errors import DualPathError
from dualpath.preflight.line import Line, fail, ok, warn
from dualpath.store.open import below, check_url, parse_url

RATE_SHARE = 0.5  # of a storage NIC's rate, by one reader: engines read many blocks at once
_PROBE_BYTES = 4096
_MIB = 1024**2
_SCRATCH_BYTES, _CHUNK_BYTES = 64 * _MIB, 4 * _MIB


def check_store(config: ServeConfig) -> Iterator[Line]:
    """Milliseconds: it is there and takes one small object, which is removed again."""
    url = config.store.url
    try:
        scheme, name, _ = parse_url(url)
        check_url(url)
        start_s = time.monotonic()
        if scheme == "file":
            _write_file(Path(name))
        elif scheme == "s3":
            _write_object(url)
    except (DualPathError, OSError) as error:
        yield fail("store", f"{url}: {_reason(error)}", "[store] url must be writable from every node and the gateway")
        return
    if scheme == "memory":
        yield warn("store", f"{url} is forgotten at the end", "file:// or s3:// keeps blocks")
        return
    yield ok("store", f"{url} takes writes, one of {_PROBE_BYTES} bytes in {1e3 * (time.monotonic() - start_s):.1f} ms")
    if scheme == "file":
        yield from _room(config, Path(name))


def check_rate(config: ServeConfig, nic_bytes_per_s: float | None, block_bytes: int | None) -> Iterator[Line]:
    """Seconds: one reader's rate beside a storage NIC's. Of file systems; a bucket's rate is not measured."""
    scheme, name, _ = parse_url(config.store.url)
    if scheme != "file":
        return
    try:
        rate = _read_bytes_per_s(Path(name))
    except OSError as error:
        yield fail("store rate", f"{config.store.url}: {_reason(error)}", "the file system must take 64 MiB")
        return
    text = f"one reader gets {rate * 8 / 1e6:,.0f} Mbit/s"
    if block_bytes and block_bytes / rate > config.deadlines.storage_read_s / 2:
        limit_s = config.deadlines.storage_read_s
        took = f"a Full Block takes {block_bytes / rate:.1f} s and has {limit_s:g} s"
        yield fail("store rate", f"{text}: {took}", "a faster store, or [deadlines] storage_read_s")
    elif nic_bytes_per_s is None:
        yield ok("store rate", f"{text}; no storage_nic_mbps to compare with")
    elif rate < RATE_SHARE * nic_bytes_per_s:
        said = f"{text}, the storage NIC is said to do {nic_bytes_per_s * 8 / 1e6:,.0f}"
        yield warn("store rate", said, "check the mount and the store, or correct storage_nic_mbps")
    else:
        yield ok("store rate", f"{text}, the storage NIC does {nic_bytes_per_s * 8 / 1e6:,.0f}")


def _write_file(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".dualpath-check-") as file:
        file.write(os.urandom(_PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())


def _write_object(url: str) -> None:
    from dualpath.store.s3 import settings
    from dualpath.store.s3.bucket import Bucket

    folder = below(url, f"check-{os.urandom(8).hex()}")
    _, name, options = parse_url(folder)
    bucket = Bucket(settings.resolve(folder, name, options))
    key = f"{bucket.settings.prefix}/probe"
    bucket.write(key, os.urandom(_PROBE_BYTES))
    bucket.delete(key)


def _room(config: ServeConfig, directory: Path) -> Iterator[Line]:
    usage, wanted = shutil.disk_usage(directory), config.store.capacity_bytes
    free = f"{usage.free / 1e9:,.1f} GB free of {usage.total / 1e9:,.1f}"
    if wanted is not None and wanted > usage.total:
        yield warn("store room", f"{free}; capacity_bytes is {wanted / 1e9:,.1f} GB", "[store] capacity_bytes")
    elif usage.free < 0.02 * usage.total:
        yield warn("store room", free, "make room, or blocks will not be kept")
    else:
        yield ok("store room", free)


def _read_bytes_per_s(directory: Path) -> float:
    """One reader's rate from the medium, not from memory. The scratch file has no name and leaves nothing."""
    with tempfile.TemporaryFile(dir=directory) as file:
        block = os.urandom(_CHUNK_BYTES)
        for _ in range(_SCRATCH_BYTES // _CHUNK_BYTES):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start_s = time.monotonic()
        while file.read(_CHUNK_BYTES):
            pass
        return _SCRATCH_BYTES / max(time.monotonic() - start_s, 1e-9)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
