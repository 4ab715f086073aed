"""``dualpath sim paper`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dualpath.cli.main import main


def test_rows_constants_and_page(tmp_path: Path) -> None:
    out, page = tmp_path / "paper.json", tmp_path / "paper.html"
    assert main(["sim", "paper", "--only", "table1,table2", "--json", str(out), "--html", str(page)]) == 0
    found = json.loads(out.read_text())
    assert set(found) == {"rows", "constants"}
    assert len(found["rows"]) == 26
    assert set(found["constants"]) == {"660B", "27B", "32B"}
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--only", "fig99"], "no experiment 'fig99'"),
        (["--only", ""], "names no experiment"),
        (["--only", "table1", "--json", "/nowhere/at/all.json"], "--json: /nowhere/at is not a directory"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "paper", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert reason in error
    assert "\n" not in error
