"""URLs that are understood, refusals that help, and what can be learned from a directory of blocks alone."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest
from tests.store.blocks import GEOMETRY, NAMESPACE, OBJECT_BYTES, block_bytes, key_of

from dualpath.core.errors import ConfigError
from dualpath.core.keys import Namespace
from dualpath.store import nixl_api
from dualpath.store.files.store import FileStore
from dualpath.store.inspect import iter_rows, summarize, verify_blocks
from dualpath.store.memory import MemoryStore
from dualpath.store.open import open_store

OTHER = b"another-digest--"


def test_known_urls(tmp_path: Path) -> None:
    namespace = Namespace("model", "float32", GEOMETRY, "cpu")
    for url in (tmp_path.as_uri(), str(tmp_path), f"file://localhost{tmp_path}/new%20one"):
        store = open_store(url, namespace, GEOMETRY)
        assert isinstance(store, FileStore)
        assert store.namespace_digest == namespace.digest
    assert (tmp_path / "new one").is_dir()
    assert open_store(f"{tmp_path.as_uri()}?durable=true", NAMESPACE, GEOMETRY).durable  # type: ignore[attr-defined]
    assert isinstance(open_store("memory://x", NAMESPACE, GEOMETRY), MemoryStore)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "empty"),
        ("file://relative/dir", "absolute path"),
        ("file:relative", "absolute path"),
        ("s3:///prefix", "not a bucket's name"),
        ("s3://key:secret@bucket/prefix", "do not belong in a URL"),
        ("s3://bucket/prefix?endpoint=localhost:9000", "endpoint must be like http"),
        ("s3://bucket/prefix?connections=100", "connections must be a number from 1 to 25"),
        ("s3://bucket/prefix?timeout_s=soon", "timeout_s must be a number"),
        ("s3://bucket/prefix?durable=true", "unknown option"),
        ("ftp://host/dir", "unknown store scheme"),
        ("file:///tmp?engine=aio", "engine must be posix or 3fs"),
        ("file:///tmp?durable=maybe", "true or false"),
        ("file:///dev/null/blocks", "cannot create"),
    ],
)
def test_refused_urls_say_why_in_one_line(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        open_store(url, NAMESPACE, GEOMETRY)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_directory_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError):
        open_store(str(tmp_path), NAMESPACE, GEOMETRY)


def test_nixl_that_is_not_installed_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    nixl_api.nixl_api.cache_clear()
    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ConfigError, match="install nixl-cu12 or nixl-cu13"):
        nixl_api.nixl_api()
    nixl_api.nixl_api.cache_clear()


def test_a_backend_that_nixl_lacks_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="no NONSENSE backend"):
        nixl_api.build_agent("nonsense", ["NONSENSE"])


def place(root: Path, namespace: bytes, number: int, data: bytes) -> Path:
    path = Path(FileStore(root, namespace, GEOMETRY).path_of(key_of(number)))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def test_rows_and_summary_need_no_model(tmp_path: Path) -> None:
    for number in range(3):
        place(tmp_path, NAMESPACE, number, block_bytes(number))
    place(tmp_path, OTHER, 1, block_bytes(1, OTHER))
    place(tmp_path, OTHER, 2, b"torn")
    (tmp_path / "README").write_text("not a namespace")
    rows = {(row.namespace_digest, row.key): row for row in iter_rows(tmp_path.as_uri())}
    assert len(rows) == 5
    header = rows[NAMESPACE, key_of(2)].header
    assert header is not None
    assert (header.parent, header.geometry) == (key_of(1), GEOMETRY)
    assert "truncated" in rows[OTHER, key_of(2)].problem
    first, second = summarize(str(tmp_path))
    assert (first.namespace_digest, first.num_blocks, first.num_bytes) == (NAMESPACE, 3, 3 * OBJECT_BYTES)
    assert (second.num_blocks, second.num_damaged, second.geometries) == (2, 1, {GEOMETRY})


def test_verify_finds_and_deletes_damage_only(tmp_path: Path) -> None:
    damaged = bytearray(block_bytes(2))
    damaged[-1] ^= 1
    good = place(tmp_path, NAMESPACE, 1, block_bytes(1))
    bad = [
        place(tmp_path, NAMESPACE, 2, bytes(damaged)),
        place(tmp_path, NAMESPACE, 3, block_bytes(3)[:-1]),
        place(tmp_path, NAMESPACE, 4, block_bytes(5)),
        place(tmp_path, OTHER, 1, block_bytes(1)),
    ]
    problems = list(verify_blocks(tmp_path.as_uri()))
    assert {problem.row.path for problem in problems} == {str(path) for path in bad}
    assert not any(problem.is_deleted for problem in problems)
    assert all(problem.is_deleted for problem in verify_blocks(tmp_path.as_uri(), delete=True))
    assert list(verify_blocks(tmp_path.as_uri())) == []
    assert good.exists()


@pytest.mark.parametrize("url", ["memory://x", "file:///no/such/directory"])
def test_what_cannot_be_inspected_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        list(iter_rows(url))
