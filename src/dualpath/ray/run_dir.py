"""What a running system leaves on the machine where it was started: one small directory, gone after ``down``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from dualpath.config import RayConfig
from dualpath.core.errors import ConfigError
from dualpath.ray.marked import end_marked, marked_processes

MARKER = "DUALPATH_RUN_DIR"  # in the environment of every process that belongs to the system
_STATE = "state.json"


@dataclass(frozen=True, slots=True)
class State:
    """What ``status`` and ``down`` need to know."""

    name: str
    address: str  # of Ray
    namespace: str  # of its actors there: two systems of one name, from different machines, do not meet
    is_own_ray: bool
    nodes: tuple[str, ...]
    gateways: tuple[str, ...]  # their actors
    urls: tuple[str, ...] = ()  # of the gateways; none: not ready yet
    auth_mode: str | None = None  # RAY_AUTH_MODE where ``up`` was typed: ``down`` may be typed in another shell
    vllm_logs: str | None = None  # the directory where vLLM servers log, each on its node's host


@dataclass(frozen=True, slots=True)
class RunDir:
    path: Path

    @staticmethod
    def of(name: str) -> RunDir:
        """Raises ConfigError for what is no system's name, and where somebody else could read or write there."""
        RayConfig(name=name)
        # Short: Ray puts sockets below it, whose paths may have 107 characters.
        parent = Path(tempfile.gettempdir()) / f"dualpath-{os.getuid()}"
        _check_private(parent)
        return RunDir(parent / name)

    @property
    def ray_dir(self) -> Path:
        return self.path / "ray"

    @property
    def token_file(self) -> Path:
        return self.path / "token"

    @property
    def is_there(self) -> bool:
        return self.path.exists()

    def why_not_there(self) -> str:
        """In words, with the systems that are."""
        others = ", ".join(sorted(path.name for path in self.path.parent.glob("*")))
        is_none = f"no system of the name {self.path.name} was started on this machine"
        return f"{is_none}; there is {others} (--cluster-name)" if others else is_none

    def create(self) -> None:
        """For this user only. Raises FileExistsError."""
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        self.path.mkdir(mode=0o700)

    def write(self, state: State) -> None:
        temporary = self.path / f"{_STATE}.new"
        temporary.write_text(json.dumps(asdict(state), indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path / _STATE)

    def read(self) -> State | None:
        """None where nothing (whole) has been written."""
        try:
            found = json.loads((self.path / _STATE).read_text(encoding="utf-8"))
            lists = {name: tuple(found[name]) for name in ("nodes", "gateways", "urls")}
            return State(**(found | lists))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def processes(self) -> list[int]:
        """All processes of this machine that were started for this system, the caller's own excepted."""
        return marked_processes(self._mark, set())

    def end_processes(self, grace_s: float = 5.0) -> None:
        end_marked(self._mark, grace_s)

    @property
    def _mark(self) -> str:
        return f"{MARKER}={self.path}"

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):  # other systems of this user are there
            self.path.parent.rmdir()


def _check_private(folder: Path) -> None:
    """Raises ConfigError where a folder of ours, if it is there, is not ours alone: its name can be guessed."""
    with contextlib.suppress(FileNotFoundError):
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ConfigError(f"{folder}: must be a directory that only its owner, this user, can use")
