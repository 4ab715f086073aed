"""Model directories that we write: without a progress bar, and for everybody who may read the directory's other files.

safetensors makes files that only their owner can read (0600), whatever the umask says: a server under another account
could read the config of such a model, and not its weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging


def save(directory: Path, *parts: Any) -> None:
    """What has ``save_pretrained``, a model among it."""
    with _no_progress_bar():
        for part in parts:
            part.save_pretrained(directory)
    share_weights(directory)


def share_weights(directory: Path) -> None:
    mode = (directory / "config.json").stat().st_mode & 0o777
    for file in directory.glob("*.safetensors"):
        file.chmod(mode)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers draws a bar for writing a few megabytes."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()
