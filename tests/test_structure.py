"""Facts about the source tree that import contracts (``make lint``) cannot see."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from dualpath.config import ServeConfig
from dualpath.config.fields import Entry, entries, tables
from tests.draw_imports import PICTURE, drawing
from tests.imports import MODULES, PACKAGE, module_imports

SETTINGS = [entry for _, table in tables(ServeConfig) for entry in entries(table)]

# Importing these must stay cheap: they run before anybody knows whether a model will be needed.
LIGHT_MODULES = [
    "dualpath.cli.main",
    "dualpath.config",
    "dualpath.core.request",
    "dualpath.scheduler.policy.engine_load",
    "dualpath.scheduler.policy.prefill_choice",
    "dualpath.scheduler.policy.decode_choice",
    "dualpath.scheduler.policy.path_choice",
    "dualpath.scheduler.policy.systems",
    "dualpath.scheduler.policy.cost",
    "dualpath.scheduler.policy.quota",
    "dualpath.sim.results",
]
LIVE_PACKAGES = (
    "cli",
    "cluster",
    "config",
    "core",
    "engine",
    "gateway",
    "models",
    "protocol",
    "ray",
    "scheduler",
    "serving",
    "store",
    "testbed",
    "traffic",
)
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
def test_every_setting_is_read_where_clusters_are_built_or_started(entry: Entry) -> None:
    """A setting that nobody reads is a promise that nobody keeps."""
    rooms = ("cluster", "ray", "serving")
    sources = [path.read_text(encoding="utf-8") for room in rooms for path in sorted((PACKAGE / room).rglob("*.py"))]
    assert any(re.search(rf"\.{entry.name}\b", source) for source in sources)


def test_no_public_class_of_the_live_packages_has_the_name_of_another() -> None:
    """But for what a file says of the scheduler (``config``), and what the scheduler makes of it."""
    names: Counter[str] = Counter()
    for path in MODULES:
        if path.relative_to(PACKAGE).parts[0] in LIVE_PACKAGES:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names.update(node.name for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1 and name[0] != "_"] == ["SchedulerConfig"]


def test_no_modules_import_each_other() -> None:
    """Imports inside functions count, too: a loop is a loop whenever it closes."""
    TopologicalSorter(module_imports()).prepare()  # raises CycleError


def test_the_drawing_of_imports_is_of_today() -> None:
    assert PICTURE.read_text(encoding="utf-8") == drawing(), "python -m tests.draw_imports draws it anew"


def test_no_room_is_overfull() -> None:
    """Whoever opens a folder should see what is in it; a catalogue may be long."""
    sizes = Counter(path.parent.relative_to(PACKAGE) for path in MODULES if path.name != "__init__.py")
    assert {str(room): size for room, size in sizes.items() if size > 25} == {}
