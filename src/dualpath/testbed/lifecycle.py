"""A testbed's life: up, found again by another process, down. Whatever happens, only what it made is ever removed.

The state file names the namespaces *before* the first of them is made, and says when all of it stands. An ``up`` that
was killed leaves a file that says "making"; the next ``up`` or ``down`` removes the namespaces named there and nothing
else.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from dualpath.core.errors import ConfigError
from dualpath.testbed.layout import commands, removal
from dualpath.testbed.signals import undisturbed
from dualpath.testbed.spec import TestbedSpec, check_name
from dualpath.testbed.system import (
    TestbedError,
    end_processes,
    existing_namespaces,
    require_kernel,
    require_tools,
    run,
)

STATE_DIR = Path("/run")
_MAKING, _UP = "making", "up"

__all__ = ["Testbed", "TestbedError"]


@dataclass(frozen=True, slots=True)
class Testbed:
    """A testbed that stands."""

    __test__ = False

    spec: TestbedSpec

    @classmethod
    def up(cls, spec: TestbedSpec) -> Testbed:
        """Make it. Raises ConfigError where this machine cannot or one of that name stands, TestbedError where a step
        failed; either way nothing is left.
        """
        require_tools()
        require_kernel()
        with _lock():
            _clear_way(spec)
            _write_state(spec, _MAKING)
            try:
                for command in commands(spec):
                    run(command)
                _write_state(spec, _UP)
            except BaseException:
                with undisturbed():
                    _remove(spec.name, spec.namespaces)
                raise
        return cls(spec)

    @classmethod
    def find(cls, name: str) -> Testbed:
        """The testbed of that name that another process made. Raises ConfigError where there is none."""
        require_tools()
        state = _read_state(name)
        if state is None or state["phase"] != _UP:
            raise ConfigError(f"no testbed {name!r} is up (dualpath testbed up makes one)")
        spec = TestbedSpec.from_json(state["spec"])
        lost = set(spec.namespaces) - existing_namespaces()
        if lost:
            raise TestbedError(
                f"testbed {name!r} lost {', '.join(sorted(lost))}; dualpath testbed down removes the rest"
            )
        return cls(spec)

    @staticmethod
    def down(name: str) -> int | None:
        """End all processes in it and remove it, whole or half made.

        Returns how many processes were ended, or None where there was no testbed of that name.
        """
        require_tools()
        with _lock():
            state = _read_state(name)
            return None if state is None else _remove(name, _namespaces(state))

    def become(self, host: str, command: list[str]) -> NoReturn:
        """Become ``command`` on ``host``. Returns never; raises ConfigError for a host that is not there."""
        if host not in self.spec.hosts:
            raise ConfigError(f"--node: {host!r} is not in the testbed; there are {', '.join(self.spec.hosts)}")
        environment = {**self.spec.environment(host), **os.environ}
        words = self.command_on(host, command)
        os.execvpe(words[0], words, environment)

    def command_on(self, host: str, command: list[str]) -> list[str]:
        """``command`` as words that run it on ``host``, for ``subprocess``; add ``spec.environment(host)`` yourself."""
        return ["ip", "netns", "exec", self.spec.namespace(host), *command]


def _clear_way(spec: TestbedSpec) -> None:
    """Before making ``spec``: no testbed of its name may stand, nor anything foreign be in its place."""
    state = _read_state(spec.name)
    if state is not None:
        stands = state["phase"] == _UP and existing_namespaces() >= set(_namespaces(state))
        if stands:
            raise ConfigError(f"testbed {spec.name!r} is up already; dualpath testbed down removes it")
        _remove(spec.name, _namespaces(state))
    foreign = existing_namespaces() & set(spec.namespaces)
    if foreign:
        raise ConfigError(
            f"network namespace {', '.join(sorted(foreign))} is there and was not made by dualpath testbed; "
            f"--name picks other names"
        )


def _remove(name: str, namespaces: tuple[str, ...]) -> int:
    ours = tuple(sorted(existing_namespaces() & set(namespaces)))
    num_ended = end_processes(ours)
    for command in removal(ours):
        run(command)
    _state_file(name).unlink(missing_ok=True)
    return num_ended


def _state_file(name: str) -> Path:
    return STATE_DIR / f"dualpath-testbed.{name}.json"


def _namespaces(state: dict[str, Any]) -> tuple[str, ...]:
    return TestbedSpec.from_json(state["spec"]).namespaces


def _read_state(name: str) -> dict[str, Any] | None:
    check_name(name)
    file = _state_file(name)
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        TestbedSpec.from_json(state["spec"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise TestbedError(f"{file}: damaged ({error}); remove it and, with ip netns del, the namespaces") from None
    return state


def _write_state(spec: TestbedSpec, phase: str) -> None:
    file = _state_file(spec.name)
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps({"phase": phase, "spec": spec.to_json()}, indent=1) + "\n", encoding="utf-8")
    draft.replace(file)


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """One ``up`` or ``down`` at a time on this machine.

    The folder itself is locked, so that no lock file is left; the kernel frees the lock of a process that was killed.
    """
    folder = os.open(STATE_DIR, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
