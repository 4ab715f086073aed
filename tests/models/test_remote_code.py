"""A model directory is data. Code in it is never run, and nobody is asked whether it may."""

from __future__ import annotations

import ast
import builtins
import json
from pathlib import Path

import pytest

import dualpath
from dualpath.core.errors import ConfigError
from dualpath.gateway.text.tokenizer import Tokenizer

CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast

Path(__file__).with_name("ran").touch()
Path({marker!r}).touch()


class Own(PreTrainedTokenizerFast):
    pass
"""


def test_a_tokenizer_with_code_of_its_own_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, model_dir = tmp_path / "ran", tmp_path / "model"
    model_dir.mkdir()
    (model_dir / "own.py").write_text(CODE.format(marker=str(marker)))
    (model_dir / "config.json").write_text('{"model_type": "own"}')
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (model_dir / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")  # whoever sits at the terminal says yes
    with pytest.raises(ConfigError) as caught:
        Tokenizer.load(model_dir)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_everything_that_is_loaded_says_so() -> None:
    calls = [
        node
        for path in Path(dualpath.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained"
    ]
    assert len(calls) >= 4
    for call in calls:
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert given.get("trust_remote_code") == "False"
        assert given.get("local_files_only") == "True"
