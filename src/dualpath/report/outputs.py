"""Files that a command writes its results to: refused before minutes of work, never left half written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dualpath.core.errors import ConfigError, DualPathError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Every OSError inside, a full disk for instance, is taken to be ``path``'s: let nothing else raise one there."""
    try:
        yield
    except OSError as error:
        raise DualPathError(f"{path}: {error.strerror or error}") from error


def check_outputs(files: Mapping[str, Path | None], given: Path | None = None) -> None:
    """``files``: by flag; ``given``: what is read. Raises ConfigError for what cannot be written, or is named twice."""
    taken = {} if given is None else {given.resolve(): "what is read"}
    for flag, file in files.items():
        if file is None:
            continue
        if file.is_dir():
            raise ConfigError(f"{flag}: {file} is a directory")
        if not file.parent.is_dir():
            raise ConfigError(f"{flag}: {file.parent} is not a directory")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise ConfigError(f"{flag}: cannot write {file}")
        if file.is_file() or not file.exists():
            where = file.resolve()
            if where in taken:
                raise ConfigError(f"{flag}: {file} is {taken[where]}, too")
            taken[where] = f"the file of {flag}"


def write_output(file: Path, text: str) -> None:
    """All of it or nothing: beside it first, then in its place. Raises DualPathError, with the file's name."""
    with writing(file):
        if file.exists() and not file.is_file():  # a device or a pipe
            file.write_text(text, encoding="utf-8")
            return
        target = file.resolve()
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as out:
                out.write(text)
            os.chmod(name, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _umask() -> int:
    """Reading it means setting it for a moment."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
