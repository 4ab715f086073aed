"""A store of files: their directory, and I/O that moves their bytes, by NIXL where the kernel gives us io_uring."""

from __future__ import annotations

from typing import Any

from dualpath.core.runtime import Runtime
from dualpath.store import nixl_api
from dualpath.store.contract import StoreIo
from dualpath.store.files.directory import FileDirectory
from dualpath.store.files.plain_io import PlainFileIo
from dualpath.store.files.transfers import FileIo


class FileStore(FileDirectory):
    """A BlockStore. Thread-safe."""

    def open_io(self, agent: Any, runtime: Runtime) -> StoreIo:
        """Without an agent, where engines move bytes without NIXL, threads of ours do it here as well."""
        if agent is not None and nixl_api.has_uring(agent):
            return FileIo(self, agent, runtime)
        return PlainFileIo(self, "local" if agent is None else agent.name, runtime)
