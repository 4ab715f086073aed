"""What a running system leaves on the machine where it was started: one small directory, gone after ``down``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

MARKER = "DUALPATH_RUN_DIR"  # in the environment of every process that belongs to the system
_STATE = "state.json"
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class State:
    """What ``status`` and ``down`` need to know."""

    name: str
    address: str  # of Ray
    is_own_ray: bool
    nodes: tuple[str, ...]
    url: str | None = None  # None: not ready yet


@dataclass(frozen=True, slots=True)
class RunDir:
    path: Path

    @staticmethod
    def of(name: str) -> RunDir:
        # Short: Ray puts sockets below it, whose paths may have 107 characters.
        return RunDir(Path(tempfile.gettempdir()) / f"dualpath-{os.getuid()}" / name)

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
        mark = f"{MARKER}={self.path}".encode()
        own = os.getpid()
        return [pid for pid in _pids() if pid != own and mark in _environ(pid)]

    def end_processes(self, grace_s: float = 5.0) -> None:
        """SIGTERM, then SIGKILL; returns when none is left. One that was stopped cannot do the first."""
        for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, grace_s)):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            until_s = time.monotonic() + wait_s
            while self.processes():
                if time.monotonic() > until_s:
                    break
                time.sleep(_POLL_S)
            else:
                return

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):  # other systems of this user are there
            self.path.parent.rmdir()


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _environ(pid: int) -> list[bytes]:
    """Empty for processes of others, and for those that have ended and wait for their parent."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
