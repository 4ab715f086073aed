"""Is the model there, whole and of a kind that can be served? By its files alone: no weights are loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from dualpath.preflight.line import Line, fail, ok

INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def check_files(model_dir: Path) -> Iterator[Line]:
    """Milliseconds: config.json, every weight file that there should be, the tokenizer."""
    if not model_dir.is_dir():
        yield fail("model", f"no such model directory: {model_dir}", "[model] dir names it, the same on every host")
        return
    try:
        json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
        shards = _shards(model_dir)
    except (OSError, ValueError) as error:
        yield fail("model", f"{model_dir}: {_short(error)}", "download it again, config.json included")
        return
    if not shards:
        yield fail("model", f"{model_dir} has no *.safetensors or *.bin weights", "download the weights too")
        return
    gone = [shard.name for shard in shards if not os.access(shard, os.R_OK) or not shard.stat().st_size]
    if gone:
        text = f"{model_dir}: {len(gone)} of {len(shards)} weight files are missing, empty or unreadable: {gone[0]}"
        yield fail("model", text, "download the rest; check owner and mode")
    elif not any((model_dir / name).is_file() for name in TOKENIZERS):
        yield fail("model", f"{model_dir} has no tokenizer", f"one of {', '.join(TOKENIZERS)} is needed")
    else:
        num_bytes = sum(shard.stat().st_size for shard in shards)
        yield ok("model", f"{model_dir}: {len(shards)} weight files, {num_bytes / 1e9:,.2f} GB")


def weight_bytes(model_dir: Path) -> int:
    return sum(shard.stat().st_size for shard in _shards(model_dir))


def _shards(model_dir: Path) -> list[Path]:
    """Those that the index names, whether they are there or not; without an index those that are there."""
    index = model_dir / INDEX
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()
        return [model_dir / name for name in sorted(set(names))]
    return sorted(model_dir.glob("*.safetensors")) or sorted(model_dir.glob("*.bin"))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
