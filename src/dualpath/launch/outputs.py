"""Files that a command writes its results to: a write that fails is said with the file's name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dualpath.core.errors import DualPathError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Every OSError inside, a full disk for instance, is taken to be ``path``'s: let nothing else raise one there."""
    try:
        yield
    except OSError as error:
        raise DualPathError(f"{path}: {error.strerror or error}") from error
