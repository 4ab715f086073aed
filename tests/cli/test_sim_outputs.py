"""Files of simulations and plans: refused before the work, whole or not there at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tests.sim.test_spec import GOOD

from dualpath.cli import sim_run
from dualpath.cli.main import main
from dualpath.core.errors import DualPathError
from dualpath.report.outputs import write_output

SMALL = ["--agents", "8", "--turns", "2"]
PLAN = ["plan", "--model", "DS-27B", "--gpu", "H800", "--aps", "1"]
RUN = ["sim", "run", "--spec", "{spec}"]


@pytest.mark.parametrize("command", [["sim", "switch", *SMALL], PLAN, ["sim", "paper"], ["sim", "ratio"], RUN])
@pytest.mark.parametrize(("out", "said"), [("{dir}", "is a directory"), ("{dir}/no/out.json", "is not a directory")])
def test_what_cannot_be_written_is_refused_at_once(
    command: list[str], out: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(GOOD)
    given = [word.format(spec=spec, dir=tmp_path) for word in [*command, "--json", out]]
    assert main(given) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"--json: {tmp_path}" in printed.err
    assert said in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("names", [("a", "a"), ("spec.toml", "b"), ("a", "../{dir}/a")])
def test_no_file_is_written_twice_nor_over_what_is_read(
    names: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(GOOD)
    json, trace = (str(tmp_path / name.format(dir=tmp_path.name)) for name in names)
    assert main(["sim", "run", "--spec", str(spec), "--json", json, "--chrome-trace", trace]) == 2
    assert ", too" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["spec.toml"]
    assert spec.read_text() == GOOD


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.json"
    out.write_text("before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DualPathError, match="No space left"):
        write_output(out, "after")
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]
    assert out.read_text() == "before"


def test_what_is_written_is_readable_like_any_other_file(tmp_path: Path) -> None:
    plain, out, link = tmp_path / "plain", tmp_path / "out", tmp_path / "link"
    plain.write_text("x")
    link.symlink_to(out)
    write_output(link, "one")
    write_output(link, "two")
    assert out.read_text() == "two"
    assert link.is_symlink()
    assert out.stat().st_mode == plain.stat().st_mode
    write_output(Path(os.devnull), "gone")


def test_ctrl_c_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sim_run, "simulate", interrupted)
    spec = tmp_path / "spec.toml"
    spec.write_text(GOOD)
    assert main(["sim", "run", "--spec", str(spec), "--json", str(tmp_path / "out.json")]) == 130
    assert [file.name for file in tmp_path.iterdir()] == ["spec.toml"]
