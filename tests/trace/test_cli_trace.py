"""``dualpath trace``: three verbs, and wrong input is one line and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dualpath.cli.main import main
from dualpath.trace import load_trace, read_trajectories


def test_synth_then_stats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.jsonl"
    assert main(["trace", "synth", "32K", "--agents", "20", "--seed", "3", "--scale", "0.1", "--out", str(out)]) == 0
    assert read_trajectories(out) == load_trace("synth:32K", agents=20, seed=3, scale=0.1)
    assert capsys.readouterr().out.startswith(f"{out}: 20 trajectories, ")
    assert main(["trace", "stats", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["turns", "append", "gen", "total", "context"]
    assert main(["trace", "stats", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_trajectories"] == 20


def test_convert_writes_trajectories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "m.jsonl", tmp_path / "t.jsonl"
    source.write_text('{"timestamp": 0, "input_length": 600, "output_length": 9, "hash_ids": [1, 2]}\n')
    assert main(["trace", "convert", str(source), str(out)]) == 0
    assert [one.total_tokens for one in read_trajectories(out)] == [609]
    assert main(["trace", "convert", str(source), str(source)]) == 2
    assert "would overwrite what is being read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["stats", "/no/such"], "/no/such: No such file or directory"),
        (["stats", "synth:9K"], "no synthetic trace '9K'"),
        (["synth", "9K", "--out", "/tmp/x"], "no synthetic trace '9K'"),
        (["synth", "32K"], "the following arguments are required: --out"),
        (["synth", "32K", "--agents", "0", "--out", "/tmp/x"], "agents: must be from 1"),
        (["synth", "32K", "--agents", "1", "--scale", "0", "--out", "/tmp/x"], "scale: must be a finite number"),
        (["synth", "32K", "--agents", "1", "--out", "/no/dir/x"], "/no/dir/x: No such file or directory"),
        (["convert", "/no/such", "/tmp/x"], "/no/such: No such file or directory"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", *arguments]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
