"""Turn a GGUF file into a model directory: weights are dequantised once, tokenizer and chat template come along."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from dualpath.core.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16")


def import_gguf(file: Path, out_dir: Path, *, dtype: str = "float32") -> Path:
    """Write what ``file`` holds into ``out_dir`` (new or empty) and return that path. Half a model is never left.

    transformers reads the architectures that it knows. Raises ConfigError for all others, and where ``gguf`` is not
    installed.
    """
    if not file.is_file():
        raise ConfigError(f"no such file: {file}")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ConfigError(f"{file} is no GGUF file")
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ConfigError(f"{out_dir} exists and is not an empty directory")
    try:
        import gguf  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError("GGUF files need the package gguf: pip install 'dualpath[gguf]'") from None
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent) as scratch:
        made = Path(scratch) / "model"
        try:
            _convert(file, made, dtype)
        except (ValueError, KeyError, NotImplementedError) as error:  # how transformers refuses
            raise ConfigError(f"{file}: transformers cannot read it: {error}") from error
        if out_dir.exists():
            out_dir.rmdir()
        shutil.move(made, out_dir)
    return out_dir


def _convert(file: Path, made: Path, dtype: str) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dualpath.models.saved import save

    place, name, options = str(file.parent.resolve()), file.name, dict[str, Any](dtype=getattr(torch, dtype))
    if hasattr(transformers, "GgufConfig"):  # from 5.20 on weights stay quantised unless this is said
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        place, gguf_file=name, local_files_only=True, trust_remote_code=False, **options
    )
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name, local_files_only=True, trust_remote_code=False)
    save(made, model, tokenizer)
