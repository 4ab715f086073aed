"""The compiled simulator is the same simulator: same numbers to the last bit, and never older than its sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from dualpath.core.errors import ConfigError
from dualpath.sim.compiled import require_current

ROOT = Path(__file__).parents[2]
SPEC = """
[cluster]
prefill_nodes = 2
decode_nodes = 2
engines_per_node = 2
storage_nic_bytes_per_s = 1e9
prefill_kv_bytes = "10GB"
decode_kv_bytes = "60GB"
store_bytes = "100GB"
[model]
kv_bytes_per_token = 50000
num_layers = 60
prefill_base_s = 0.05
decode_base_s = 0.02
decode_per_context_token_s = 1e-8
[workload]
trace = "synth:32K"
agents = 40
rounds = 8
[scheduler]
systems = "basic,shorter,split,round_robin,oracle"
[updates]
every = 90
weights = 2
load_s = 2
wipe_s = 1
[failures]
events = ["20 decode0-1 30", "25 prefill-node0 40"]
"""
COMMANDS = ("run --spec spec.toml", "switch --nodes 4 --agents 24 --turns 6")  # failures; nodes that change role
CAN_COMPILE = shutil.which("cc") and Path(sysconfig.get_paths()["include"], "Python.h").exists()


@pytest.mark.skipif(not CAN_COMPILE, reason="needs a C compiler and Python.h")
@pytest.mark.timeout(900)
def test_compiled_numbers_are_those_of_plain_python(tmp_path: Path) -> None:
    for name in ("setup.py", "mypyc.ini", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=ignored)
    (tmp_path / "spec.toml").write_text(SPEC)
    plain = [simulated(tmp_path, command) for command in COMMANDS]
    assert require_current(tmp_path / "src" / "dualpath") == 0
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(build, cwd=tmp_path, env={**os.environ, "DUALPATH_COMPILE": "1"}, capture_output=True)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()[-4000:]
    assert require_current(tmp_path / "src" / "dualpath") > 20
    assert [simulated(tmp_path, command) for command in COMMANDS] == plain


def simulated(folder: Path, arguments: str) -> str:
    command = [sys.executable, "-m", "dualpath", "sim", *arguments.split(), "--json", "out.json"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder / "src")}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return (folder / "out.json").read_text()


def test_a_library_older_than_its_source_is_refused(tmp_path: Path) -> None:
    for package in ("sim", "scheduler"):
        (tmp_path / package).mkdir()
    library = tmp_path / "sim" / f"life{EXTENSION_SUFFIXES[0]}"
    library.touch()
    source = tmp_path / "sim" / "life.py"
    source.touch()
    assert require_current(tmp_path) == 1
    os.utime(library, (1e9, 1e9))
    with pytest.raises(ConfigError, match=r"older than life\.py"):
        require_current(tmp_path)
