"""``dualpath store``: what is there, what is damaged, and that only damaged blocks are ever deleted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.store.blocks import GEOMETRY, NAMESPACE, block_bytes, key_of

from dualpath.cli.main import main
from dualpath.store.files.store import FileStore
from dualpath.store.folder import FileFolder
from dualpath.store.weights_note import WeightsNote

DAMAGED = 2


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three good blocks; number DAMAGED gets a flipped bit in its payload."""
    store = FileStore(tmp_path, NAMESPACE, GEOMETRY)
    found = [Path(store.path_of(key_of(number))) for number in range(3)]
    for number, path in enumerate(found):
        path.parent.mkdir(parents=True, exist_ok=True)
        data = bytearray(block_bytes(number))
        data[-1] ^= number == DAMAGED
        path.write_bytes(data)
        os.utime(path, (time.time() - 1000,) * 2)
    return found


@pytest.mark.usefixtures("paths")
def test_ls_shows_one_line_for_a_namespace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "ls", tmp_path.as_uri()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].split()[:2] == [NAMESPACE.hex(), "3"]
    assert lines[1].endswith("-  4 layers x 16 tokens x 64 B")
    FileFolder(str(tmp_path)).write_note(NAMESPACE, WeightsNote("m", "step-7", "/weights/step_7", time.time()))
    assert main(["store", "ls", tmp_path.as_uri()]) == 0
    assert " now  m step-7 (/weights/step_7)  4 layers" in capsys.readouterr().out


@pytest.mark.usefixtures("paths")
def test_gc_says_what_becomes_of_each_namespace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "gc", tmp_path.as_uri(), "--keep-latest", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:7] == [NAMESPACE.hex(), "3", "24.0", "KiB", "3", "24.0", "KiB"]
    assert lines[2].startswith("3 of 3 blocks deleted, 24.0 KiB of 24.0 KiB")
    assert main(["store", "ls", tmp_path.as_uri()]) == 0
    assert capsys.readouterr().out == f"{tmp_path.as_uri()}: no blocks\n"


@pytest.mark.usefixtures("paths")
def test_gc_refuses_a_namespace_in_use_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FileFolder(str(tmp_path)).write_note(NAMESPACE, WeightsNote("m", "0", "/m", time.time()))
    assert main(["store", "gc", tmp_path.as_uri(), "--namespace", NAMESPACE.hex()]) == 2
    assert f"the namespace {NAMESPACE.hex()} is in use" in capsys.readouterr().err


@pytest.mark.usefixtures("paths")
def test_ls_can_show_every_block(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "ls", "--blocks", tmp_path.as_uri()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines[1:]} == {key_of(number).hex() for number in range(3)}


def test_an_empty_store_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "ls", tmp_path.as_uri()]) == 0
    assert capsys.readouterr().out == f"{tmp_path.as_uri()}: no blocks\n"
    assert main(["store", "verify", tmp_path.as_uri()]) == 0


def test_verify_reports_damage_and_deletes_only_when_asked(
    tmp_path: Path, paths: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    url = tmp_path.as_uri()
    assert main(["store", "verify", url]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{paths[DAMAGED]}: ")
    assert lines[1] == "3 blocks read, 1 damaged"
    assert all(path.exists() for path in paths)

    assert main(["store", "verify", "--delete", url]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 blocks read, 1 damaged, 1 deleted"
    assert [path.exists() for path in paths] == [True, True, False]

    assert main(["store", "verify", url]) == 0
    assert capsys.readouterr().out == "2 blocks read, 0 damaged\n"


@pytest.mark.usefixtures("paths")
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    program = "from dualpath.cli.main import main; raise SystemExit(main())"
    command = (
        f"{sys.executable} -u -c '{program}' store ls --blocks {tmp_path.as_uri()} | true; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]
    assert done.stderr == ""
