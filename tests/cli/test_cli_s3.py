"""The command line on s3:// URLs: look, verify, shrink; one line and exit code 2 where the bucket cannot be used."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from tests.store.blocks import GEOMETRY, NAMESPACE, OBJECT_BYTES, block_bytes, key_of
from tests.store.s3_server import S3Server, s3_server, set_credentials

from dualpath.cli.main import main
from dualpath.store.open import open_folder, open_store
from dualpath.store.s3.store import S3Store
from dualpath.store.weights_note import WeightsNote

DAMAGED = 2


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    set_credentials(monkeypatch, tmp_path)
    with s3_server(tmp_path / "s3") as server:
        yield server


@pytest.fixture
def store(server: S3Server) -> S3Store:
    """Five blocks; number DAMAGED gets a flipped bit in its payload."""
    store = open_store(server.url("kv"), NAMESPACE, GEOMETRY)
    assert isinstance(store, S3Store)
    for number in range(5):
        data = bytearray(block_bytes(number))
        data[-1] ^= number == DAMAGED
        obstore.put(store.bucket.client, store.name_of(key_of(number)), bytes(data), use_multipart=False)
    obstore.put(store.bucket.client, "elsewhere/x.kv", b"not ours", use_multipart=False)
    return store


def numbers(store: S3Store) -> set[int]:
    return {number for number in range(5) if store.exists(key_of(number))}


def test_ls_shows_namespaces_and_blocks(store: S3Store, server: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "ls", server.url("kv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == [NAMESPACE.hex(), "5"]
    assert lines[1].endswith("4 layers x 16 tokens x 64 B")
    assert main(["store", "ls", "--blocks", server.url("kv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines[1:]} == {key_of(number).hex() for number in range(5)}


def test_verify_finds_and_deletes_damage_only(
    store: S3Store, server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["store", "verify", server.url("kv")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{store.name_of(key_of(DAMAGED))}: ")
    assert lines[1] == "5 blocks read, 1 damaged"
    assert main(["store", "verify", "--delete", server.url("kv")]) == 0
    assert numbers(store) == {0, 1, 3, 4}
    assert obstore.head(store.bucket.client, "elsewhere/x.kv")["size"] == len(b"not ours")


def test_gc_shrinks_from_the_end_of_the_chain(
    store: S3Store, server: S3Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = str(3 * OBJECT_BYTES)
    assert main(["store", "gc", "--dry-run", "--capacity-bytes", limit, server.url("kv")]) == 0
    assert "2 of 5 blocks would be deleted" in capsys.readouterr().out
    assert main(["store", "gc", "--capacity-bytes", limit, server.url("kv")]) == 0
    assert "2 of 5 blocks deleted" in (said := capsys.readouterr().out)
    assert "; 0 abandoned temporary files" in said
    assert numbers(store) == {0, 1, 2}
    command = ["store", "gc", "--namespace", NAMESPACE.hex(), server.url("kv")]
    assert main(command) == 2, "written just now"
    monkeypatch.setattr("dualpath.store.inspect.IN_USE_S", 0.0)
    assert main(command) == 0
    assert numbers(store) == set()


def test_gc_leaves_what_a_server_says_that_it_uses(
    store: S3Store, server: S3Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, command = open_folder(server.url("kv")), ["store", "gc", "--keep-latest", "0", server.url("kv")]
    assert folder.read_note(NAMESPACE) is None
    monkeypatch.setattr("dualpath.store.inspect.IN_USE_S", 0.0)
    folder.write_note(NAMESPACE, WeightsNote("m", "step-7", "/weights/step_7", time.time() + 30))
    assert main(command) == 0
    assert numbers(store) == set(range(5))
    assert "now  m step-7 (/weights/step_7)" in capsys.readouterr().out
    folder.write_note(NAMESPACE, WeightsNote("m", "step-7", "/weights/step_7", time.time() - 30))
    assert main(command) == 0
    assert numbers(store) == set()
    assert folder.read_note(NAMESPACE) is None
    folder.delete_note(NAMESPACE)


@pytest.mark.parametrize("arguments", [["--capacity-bytes", "much"], ["--namespace", "abc"], ["--keep-latest", "-1"]])
def test_gc_refuses_what_it_does_not_understand(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["store", "gc", *arguments, tmp_path.as_uri()]) == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_bucket_that_is_not_there_is_one_line_and_exit_code_2(
    server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"s3://nobody/kv?endpoint={server.endpoint}"
    for command in (["store", "ls", url], ["serve", "--model", str(tmp_path), "--store", url]):
        assert main(command) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines() == [
            f"dualpath: error: s3://nobody/kv: there is no bucket nobody at {server.endpoint}"
        ]
    server.kill()
    assert main(["store", "ls", server.url("kv")]) == 2
    assert "cannot connect to" in capsys.readouterr().err
