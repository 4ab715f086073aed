"""``dualpath sim switch``: its table and JSON, and one line for every wrong wish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dualpath.cli.main import main


def test_every_ratio_and_the_changing_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "switch.json"
    assert main(["sim", "switch", "--nodes", "3", "--agents", "8", "--turns", "4", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("P/D ")
    assert "best fixed" in text
    report = json.loads(out.read_text())
    assert [row["num_prefill"] for row in report["fixed"]] == [1, 2]
    best = min(row["jct_s"] for row in report["fixed"])
    for row in report["changing"]:
        assert row["gain_over_best_fixed"] == pytest.approx(best / row["jct_s"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--nodes", "1"], "--nodes: must be at least 2, not 1"),
        (["--agents", "0"], "agents: must be from 2 to 100000, not 0"),
        (["--turns", "100000000"], "turns: must be from 2 to 10000, not 100000000"),
        (["--seed", "-1"], "--seed: must be at least 0, not -1"),
        (["--switch-s", "nan"], "--switch-s: must be a finite number, not nan"),
        (["--window-s", "1e-9"], "--window-s: must be at least 0.01, not 1e-09"),
        (["--window-s", "nan"], "--window-s: must be a finite number, not nan"),
        (["--dwell-s", "inf"], "--dwell-s: must be a finite number, not inf"),
        (["--gpu", "V100"], "gpu must be one of A100"),
        (["--model", "DeepSeek-V3", "--gpu", "A100"], "DeepSeek-V3 does not fit on A100"),
    ],
)
def test_a_wrong_wish_is_one_line(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "switch", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
