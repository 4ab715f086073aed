"""What ``up`` leaves on a machine: whose it may be, and that all of its processes are found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from tests.e2e.ray_kit import is_alive

from dualpath.cli.main import main
from dualpath.core.errors import ConfigError, DualPathError
from dualpath.ray import ending
from dualpath.ray.run_dir import MARKER, RunDir, State

# A child without the mark in its environment, as Ray's agents are once they have written their title over it; then both
# wait for the end of stdin.
PARENT = """\
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], env={})
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.parametrize("name", ["../victim", "", ".", "a/b", "UPPER"])
@pytest.mark.parametrize("verb", ["down", "status"])
def test_what_is_no_name_reaches_no_directory(
    verb: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"dualpath-{os.getuid()}").mkdir(mode=0o700)
    victim = tmp_path / "victim"
    victim.mkdir()
    assert main([verb, "--cluster-name", name]) == 2
    assert "[ray] name: must" in capsys.readouterr().err
    assert victim.is_dir()


@pytest.mark.parametrize("verb", ["down", "status"])
def test_who_forgets_the_name_is_told_those_there_are(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("two", "one"):
        RunDir.of(name).create()
    assert main([verb]) == 1
    assert "no system of the name dualpath was started on this machine; there is one, two" in capsys.readouterr().err


def test_status_of_a_start_that_was_broken_off_says_how_to_end_it(capsys: pytest.CaptureFixture[str]) -> None:
    RunDir.of("half").create()
    assert main(["status", "--cluster-name", "half"]) == 1
    assert "broken off: dualpath down --cluster-name half ends it" in capsys.readouterr().err


def test_down_asks_with_a_token_where_up_did_whatever_the_shell_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: str) -> None:
        raise DualPathError(f"mode {os.environ['RAY_AUTH_MODE']}")

    monkeypatch.setattr(ending, "connect", connect)
    monkeypatch.setattr(signal, "alarm", lambda _: 0)
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.delenv("RAY_AUTH_MODE")
    run_dir = RunDir.of("test")
    run_dir.create()
    run_dir.write(State("test", "127.0.0.1:1", "n", False, (), (), auth_mode="token"))
    said = StringIO()
    with redirect_stdout(said):
        ending.main([str(run_dir.path), "0.0"])
    assert said.getvalue() == "mode token\n"


def test_a_folder_that_others_can_use_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / f"dualpath-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(ConfigError, match="only its owner"):
        RunDir.of("test")
    folder.chmod(0o700)
    RunDir.of("test").create()


def test_a_link_to_a_folder_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / f"dualpath-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="must be a directory"):
        RunDir.of("test")


@pytest.fixture
def family() -> Iterator[tuple[RunDir, subprocess.Popen[str], int]]:
    """A marked process in a session of its own, and its child without the mark."""
    run_dir = RunDir.of("test")
    environment = {**os.environ, MARKER: str(run_dir.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with parent:
        assert parent.stdout is not None
        yield run_dir, parent, int(parent.stdout.readline())
        parent.kill()


def test_processes_that_lost_their_mark_are_found_and_ended(
    family: tuple[RunDir, subprocess.Popen[str], int],
) -> None:
    run_dir, parent, child = family
    assert sorted(run_dir.processes()) == sorted([parent.pid, child])
    run_dir.end_processes()
    assert not is_alive(child)
    assert not is_alive(parent.pid)


def test_a_process_that_has_ended_and_was_not_asked_how_counts_no_more(
    family: tuple[RunDir, subprocess.Popen[str], int],
) -> None:
    run_dir, parent, _ = family
    run_dir.end_processes()
    assert parent.returncode is None, "nobody has asked"
    assert run_dir.processes() == []
