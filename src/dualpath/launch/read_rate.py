"""How fast this machine reads from the file system of a block store: a scratch file, written, dropped, read back."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dualpath.core.runtime import Clock

SCRATCH_BYTES = 64 * 1024**2
CHUNK_BYTES = 4 * 1024**2


def read_bytes_per_s(directory: Path, clock: Clock) -> float | None:
    """One reader's rate, or None where the directory cannot be written. The scratch file has no name and no traces."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            block = os.urandom(CHUNK_BYTES)
            for _ in range(SCRATCH_BYTES // CHUNK_BYTES):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from the medium, not from memory
            file.seek(0)
            start_s = clock.now_s()
            while file.read(CHUNK_BYTES):
                pass
            return SCRATCH_BYTES / max(clock.now_s() - start_s, 1e-9)
    except OSError:
        return None
