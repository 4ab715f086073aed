"""Whether the simulator's inner loop is compiled (``setup.py``), and that it is compiled from the sources beside it."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import dualpath
from dualpath.core.errors import ConfigError

PACKAGES = ("scheduler", "sim")  # where setup.py compiles modules
INSTALL_S = 60.0  # files of one installation may be as far apart: it writes them in any order


def require_current(root: Path | None = None) -> int:
    """Number of compiled modules; 0: plain Python. Raises ConfigError for one that is older than its source: Python
    would run the old one. ``root``: the package ``dualpath``."""
    folder = root or Path(dualpath.__file__).parent
    count = 0
    for library in sorted(path for package in PACKAGES for path in (folder / package).rglob("*")):
        if not library.name.endswith(EXTENSION_SUFFIXES[0]):
            continue
        source = library.with_name(library.name.removesuffix(EXTENSION_SUFFIXES[0]) + ".py")
        count += 1
        if source.exists() and source.stat().st_mtime > library.stat().st_mtime + INSTALL_S:
            raise ConfigError(f"{library} is older than {source.name}: compile again (make compiled), or delete it")
    return count
