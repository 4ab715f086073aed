"""Facts about the source tree that import contracts (``make lint``) cannot see."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dualpath
from dualpath.config import ServeConfig
from dualpath.config.fields import Entry, entries, tables

PACKAGE = Path(dualpath.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
SETTINGS = [entry for _, table in tables(ServeConfig) for entry in entries(table)]

# Importing these must stay cheap: they run before anybody knows whether a model will be needed.
LIGHT_MODULES = [
    "dualpath.launch.cli",
    "dualpath.config",
    "dualpath.core.request",
    "dualpath.scheduler.snapshot",
    "dualpath.scheduler.prefill_choice",
    "dualpath.scheduler.decode_choice",
    "dualpath.scheduler.path_choice",
    "dualpath.scheduler.systems",
    "dualpath.scheduler.cost",
    "dualpath.scheduler.quota",
    "dualpath.sim.results",
]
HEAVY_PACKAGES = {"torch", "transformers", "nixl", "nixl_cu12", "fastapi", "uvicorn"}


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({HEAVY_PACKAGES!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, f"{path} has no module docstring"
    assert docstring.splitlines()[0].strip()


@pytest.mark.parametrize("entry", SETTINGS, ids=lambda entry: f"{entry.table}.{entry.name}")
def test_every_setting_is_read_by_launch(entry: Entry) -> None:
    """A setting that nobody reads is a promise that nobody keeps."""
    sources = [path.read_text(encoding="utf-8") for path in sorted((PACKAGE / "launch").rglob("*.py"))]
    assert any(re.search(rf"\.{entry.name}\b", source) for source in sources)
