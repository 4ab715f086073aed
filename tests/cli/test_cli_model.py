"""``dualpath model init`` makes directories that transformers loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualpath.cli.main import main


def test_init_makes_a_model_of_the_size_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoConfig

    out = tmp_path / "new" / "model"
    assert main(["model", "init", "--family", "qwen3", "--out", str(out), "--layers", "2", "--hidden", "64"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: qwen3, ")
    config = AutoConfig.from_pretrained(out)
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("qwen3", 2, 64)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--family", "gpt9"], "unknown model family 'gpt9'"),
        (["--family", "llama", "--preset", "huge"], "unknown preset 'huge'"),
        (["--family", "llama", "--dtype", "int4"], "unknown dtype 'int4'"),
        (["--family", "llama", "--layers", "0"], "layers must be at least 1, not 0"),
    ],
)
def test_bad_arguments(arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "init", "--out", str(tmp_path / "m"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"dualpath: error: {reason}")
    assert error.count("\n") == 1
    assert not (tmp_path / "m").exists()


def test_it_never_writes_into_a_directory_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").write_text("x")
    assert main(["model", "init", "--family", "llama", "--out", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["model", "init", "--family", "llama", "--out", str(tmp_path / "file" / "m")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
