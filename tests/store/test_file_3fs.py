"""engine=3fs without a 3FS: what is missing is named; with a stand-in for the plugin, the data path is the files' own.

No 3FS cluster has run this. The stand-in is NIXL's POSIX backend under the plugin's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.store.blocks import GEOMETRY, NAMESPACE, OBJECT_BYTES, Bench, key_of

from dualpath.core.errors import BlockMissingError, ConfigError
from dualpath.core.runtime import SystemRuntime
from dualpath.store.contract import IoState
from dualpath.store.files import hf3fs as file_3fs
from dualpath.store.files.hf3fs import File3fsStore
from dualpath.store.files.store import FileStore
from dualpath.store.header import verify
from dualpath.store.nixl_api import build_agent, installed_backends
from dualpath.store.open import check_url, open_store

PLUGIN_MISSING = "HF3FS" not in installed_backends()


class StandIn:
    """An agent whose HF3FS is POSIX. Remembers what the plugin would have been told."""

    def __init__(self) -> None:
        self._agent = build_agent("stand-in", ())
        self.params: Mapping[str, str] = {}

    def close(self) -> None:
        """The native agent goes now, with its descriptors: other tests count them."""
        self._agent.agent = None

    def get_plugin_list(self) -> list[str]:
        return [*self._agent.get_plugin_list(), file_3fs.BACKEND]

    @property
    def backends(self) -> dict[str, Any]:
        return {file_3fs.BACKEND if name == "POSIX" else name: value for name, value in self._agent.backends.items()}

    def create_backend(self, name: str, params: Mapping[str, str]) -> None:
        assert name == file_3fs.BACKEND
        self.params = params
        self._agent.create_backend("POSIX", {"use_aio": "true"})

    def register_memory(self, memory: Any, kind: str | None = None, backends: Sequence[str] = ()) -> Any:
        return self._agent.register_memory(memory, kind, backends=posix(backends))

    def deregister_memory(self, descriptors: Any, backends: Sequence[str] = ()) -> None:
        self._agent.deregister_memory(descriptors, backends=posix(backends))

    def initialize_xfer(self, *arguments: Any) -> Any:
        return self._agent.initialize_xfer(*arguments[:-1], posix(arguments[-1]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)


def posix(backends: Sequence[str]) -> list[str]:
    assert set(backends) <= {file_3fs.BACKEND}, "another backend than 3FS's moves the data"
    return ["POSIX" for _ in backends]


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that looks like a 3FS mount to a NIXL that has the plugin."""
    (tmp_path / "3fs-virt").mkdir()
    monkeypatch.setattr(file_3fs, "installed_backends", lambda: ("POSIX", file_3fs.BACKEND))
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == tmp_path)
    return tmp_path


@pytest.mark.skipif(not PLUGIN_MISSING, reason="this NIXL has the HF3FS plugin")
@pytest.mark.parametrize("call", [check_url, lambda url: open_store(url, NAMESPACE, GEOMETRY)], ids=["check", "open"])
def test_without_the_plugin_the_error_names_it(call: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"libplugin_HF3FS\.so.*NIXL_PLUGIN_DIR") as caught:
        call(f"{tmp_path.as_uri()}?engine=3fs")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_on_no_3fs_is_refused(mount: Path) -> None:
    (mount / "3fs-virt").rmdir()
    with pytest.raises(ConfigError, match="is no 3FS mount"):
        open_store(f"{mount.as_uri()}/kv?engine=3fs", NAMESPACE, GEOMETRY)


def test_without_the_option_the_mount_is_a_directory_like_any_other(mount: Path) -> None:
    assert type(open_store(f"{mount.as_uri()}/kv", NAMESPACE, GEOMETRY)) is FileStore


def test_data_goes_through_the_plugin_and_the_directory_through_the_mount(mount: Path) -> None:
    store = open_store(f"{mount.as_uri()}/kv?engine=3fs", NAMESPACE, GEOMETRY)
    assert isinstance(store, File3fsStore)
    agent = StandIn()
    io = store.open_io(agent, SystemRuntime())
    assert agent.params == {"mount_point": str(mount), "mem_config": "dram"}
    staging = torch.zeros((4, OBJECT_BYTES), dtype=torch.uint8)
    agent.register_memory(staging)
    bench = Bench(store, io, staging, agent)
    assert set(bench.write(0, 1, 2)) == {IoState.DONE}
    errors = [ticket.error for ticket in bench.read(2, 1, 9)]
    assert errors[:2] == [None, None]
    assert isinstance(errors[2], BlockMissingError)
    verify(bench.views[0], NAMESPACE, key_of(2), GEOMETRY)
    plain = open_store(f"{mount.as_uri()}/kv", NAMESPACE, GEOMETRY)
    assert {block.key for block in plain.list_blocks()} == {key_of(number) for number in range(3)}
    io.close()
    agent.close()
