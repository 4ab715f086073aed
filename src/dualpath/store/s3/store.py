"""A store of S3 objects: their directory, and the I/O that moves their bytes by NIXL."""

from __future__ import annotations

from typing import Any

from dualpath.core.runtime import Runtime
from dualpath.store.contract import StoreIo
from dualpath.store.s3.directory import S3Directory
from dualpath.store.s3.transfers import S3Io


class S3Store(S3Directory):
    """A BlockStore. Thread-safe."""

    def open_io(self, agent: Any, runtime: Runtime) -> StoreIo:
        return S3Io(self, agent, runtime)
