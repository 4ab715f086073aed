"""Processes of this machine by a mark in their environment: found, and ended, whoever has started them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

_POLL_S = 0.05


def marked_processes(mark: str, sessions: set[int]) -> list[int]:
    """Those with ``mark``, a NAME=VALUE, or in one session with such a one: Ray's agents write their title over their
    environment. The caller's own is left out.

    ``sessions`` gains those of marked processes, so that the others are found after these have ended.
    """
    own = os.getpid()
    living = {pid: session for pid in _pids() if pid != own and (session := _session(pid))}
    marked = {pid for pid in living if mark.encode() in _environ(pid)}
    sessions |= {living[pid] for pid in marked}
    return [pid for pid, session in living.items() if pid in marked or session in sessions]


def end_marked(mark: str, grace_s: float = 5.0) -> None:
    """SIGTERM, then SIGKILL; returns when none is left. One that was stopped cannot do the first."""
    sessions: set[int] = set()
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, grace_s)):
        for pid in marked_processes(mark, sessions):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        until_s = time.monotonic() + wait_s
        while marked_processes(mark, sessions):
            if time.monotonic() > until_s:
                break
            time.sleep(_POLL_S)
        else:
            return


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
