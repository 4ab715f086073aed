"""Blocks on 3FS by its native, zero-syscall I/O (USRBIO) instead of its FUSE mount: NIXL's HF3FS plugin moves the data.

Names, listing and deletion go through the mount in both cases, so ``file:///mnt/3fs/kv`` and
``file:///mnt/3fs/kv?engine=3fs`` are the same store, and only the path of the bytes differs. Written against NIXL's
documented plugin (parameters ``mount_point`` and ``mem_config``, FILE descriptors by open file) and USRBIO's documented
layout (``<mount>/3fs-virt``). It has not been run on a 3FS cluster.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dualpath.core.errors import ConfigError
from dualpath.core.geometry import KvGeometry
from dualpath.core.runtime import Runtime
from dualpath.store.contract import StoreIo
from dualpath.store.files.store import FileStore
from dualpath.store.files.transfers import FileIo
from dualpath.store.nixl_api import installed_backends

BACKEND = "HF3FS"
# The plugin runs one waiting thread per transfer handle, and we make one handle per object.
MAX_OPEN_FILES = 32


class File3fsStore(FileStore):
    """A FileStore whose data moves by USRBIO. Raises ConfigError where the mount or the plugin is missing."""

    def __init__(self, root: Path, namespace_digest: bytes, geometry: KvGeometry, *, durable: bool = False) -> None:
        self.mount = check_3fs(root)
        super().__init__(root, namespace_digest, geometry, durable=durable)

    def open_io(self, agent: Any, runtime: Runtime) -> StoreIo:
        params = backend_params(self.mount)
        return FileIo(self, agent, runtime, backend=BACKEND, backend_params=params, max_open=MAX_OPEN_FILES)


def backend_params(mount: Path) -> dict[str, str]:
    """``dram``: the plugin moves bytes through shared memory of its own and copies.

    Its zero-copy mode maps new pages over registered memory. A NIC that has pinned the old ones, as RDMA does with the
    same staging buffer, would go on using those.
    """
    return {"mount_point": str(mount), "mem_config": "dram"}


def check_3fs(directory: Path) -> Path:
    """Where the 3FS that holds ``directory`` is mounted. Raises ConfigError, naming what is missing."""
    if BACKEND not in installed_backends():
        raise ConfigError(
            "engine=3fs: NIXL's HF3FS plugin is not installed: libplugin_HF3FS.so, which needs 3FS's "
            "libhf3fs_api_shared.so; NIXL_PLUGIN_DIR names its folder; without engine=3fs the FUSE mount is used"
        )
    path = directory.absolute()
    while not os.path.ismount(path):
        path = path.parent
    if not (path / "3fs-virt").is_dir():
        raise ConfigError(f"engine=3fs: {directory} is on {path}, which is no 3FS mount (it has no 3fs-virt)")
    return path
