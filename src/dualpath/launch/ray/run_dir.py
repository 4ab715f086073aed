"""What a running system leaves on the machine where it was started: one small directory, gone after ``down``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from dualpath.config import RayConfig
from dualpath.core.errors import ConfigError

MARKER = "DUALPATH_RUN_DIR"  # in the environment of every process that belongs to the system
_STATE = "state.json"
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class State:
    """What ``status`` and ``down`` need to know."""

    name: str
    address: str  # of Ray
    namespace: str  # of its actors there: two systems of one name, from different machines, do not meet
    is_own_ray: bool
    nodes: tuple[str, ...]
    url: str | None = None  # None: not ready yet


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
            return State(**(found | {"nodes": tuple(found["nodes"])}))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def processes(self) -> list[int]:
        """All processes of this machine that were started for this system, the caller's own excepted."""
        return self._processes(set())

    def end_processes(self, grace_s: float = 5.0) -> None:
        """SIGTERM, then SIGKILL; returns when none is left. One that was stopped cannot do the first."""
        sessions: set[int] = set()
        for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, grace_s)):
            for pid in self._processes(sessions):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            until_s = time.monotonic() + wait_s
            while self._processes(sessions):
                if time.monotonic() > until_s:
                    break
                time.sleep(_POLL_S)
            else:
                return

    def _processes(self, sessions: set[int]) -> list[int]:
        """By their mark, or by their session: Ray's agents write their title over their environment.

        ``sessions`` gains those of marked processes, so that the others are found after these have ended.
        """
        mark, own = f"{MARKER}={self.path}".encode(), os.getpid()
        living = {pid: session for pid in _pids() if pid != own and (session := _session(pid))}
        marked = {pid for pid in living if mark in _environ(pid)}
        sessions |= {living[pid] for pid in marked}
        return [pid for pid, session in living.items() if pid in marked or session in sessions]

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):  # other systems of this user are there
            self.path.parent.rmdir()


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _session(pid: int) -> int | None:
    """None for a process that has ended, even if its parent has not asked how."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[3])


def _environ(pid: int) -> list[bytes]:
    """Empty for processes of others."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _check_private(folder: Path) -> None:
    """Raises ConfigError where a folder of ours, if it is there, is not ours alone: its name can be guessed."""
    with contextlib.suppress(FileNotFoundError):
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ConfigError(f"{folder}: must be a directory that only its owner, this user, can use")
