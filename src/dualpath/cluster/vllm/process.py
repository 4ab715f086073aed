"""One vLLM server that was started here: its process, its log, why it has ended, and an orderly end of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_POLL_S = 0.1
_TERM_S = 20.0
_KILL_S = 5.0
_TAIL_BYTES = 64 * 1024
_AROUND = "', please check the stack trace above"  # as vLLM hands on why its worker failed
_OURS = re.compile(rf"(DualPath cannot serve this|dualpath\.[a-z_]+): .*?(?={_AROUND}|$)", re.MULTILINE)
_ERROR = re.compile(r"\b(\w*(?:Error|Exception)|error): .*")


class ServerProcess:
    """Event loop only."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self.log = name, log
        self._command, self._environment = list(command), dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begin_bytes = 0  # what stands before it is of a former process

    def start(self) -> None:
        """Appends to the log. Raises OSError."""
        with self.log.open("ab") as output:
            self._log_begin_bytes = output.tell()
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to pass on
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    async def ended(self) -> int:
        """Its exit code, when it has one."""
        while (code := self.exit_code) is None:  # noqa: ASYNC110  (a signal handler for children is not ours to set)
            await asyncio.sleep(_POLL_S)
        return code

    def why_ended(self) -> str:
        """One line for people, from the end of the log where it says something."""
        how = "it ended" if self.exit_code is None else f"it ended with exit code {self.exit_code}"
        reason = _reason_in(self.log, self._log_begin_bytes)
        return f"{self.name}: {how}{': ' + reason if reason else ''}; its log is {self.log}"

    def kill(self) -> None:
        """At once, with all it has started."""
        self._signal(signal.SIGKILL)

    async def stop(self, *, at_once: bool = False) -> None:
        """SIGTERM, then SIGKILL; returns when nothing of it is left."""
        if self._process is None:
            return
        for number, wait_s in ((signal.SIGTERM, 0.0 if at_once else _TERM_S), (signal.SIGKILL, _KILL_S)):
            self._signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self.ended()
        self._signal(signal.SIGKILL)  # its children, which it should have ended

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def _reason_in(log: Path, begin_bytes: int) -> str | None:
    """The last error that the log tells of from there on; what DualPath has refused comes first."""
    try:
        with log.open("rb") as file:
            file.seek(max(begin_bytes, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    for pattern in (_OURS, _ERROR):
        if found := list(pattern.finditer(text)):
            return " ".join(found[-1].group(0).split())[:500]
    return None
