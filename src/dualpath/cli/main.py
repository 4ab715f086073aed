"""The ``dualpath`` command: parse, run, and turn every failure into one line and an exit code.

0 = done, 1 = failed, 2 = the user's input is wrong, 130 = interrupted. Starts fast: torch is imported by the verbs that
need it, when they run.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from dualpath import __version__
from dualpath.config.load import suggestion
from dualpath.core.errors import ConfigError, DualPathError

TRACEBACK_VARIABLE = "DUALPATH_TRACEBACK"
# What a disk that is full, read-only or broken answers while we write: no bug of ours.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage like any other wrong input. Flags are never abbreviated: a new one must not break scripts."""

    def __init__(self, **options: object) -> None:
        super().__init__(allow_abbrev=False, **options)  # type: ignore[arg-type]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Every verb refuses what it does not know itself: else ``dualpath`` would, whose --help has none of it."""
        found, extra = super().parse_known_args(args, namespace)
        if extra:
            self.error(f"unrecognized arguments: {' '.join(extra)}{suggestion(extra[0], self._option_string_actions)}")
        return found, extra

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


# A module for each verb, in the order of --help.
_VERBS = (
    "serve", "up", "operate.check", "operate.why", "operate.dashboards", "operate.kubernetes", "operate.kuberay",
    "operate.vllm", "batch", "bench", "sim", "plan", "fabric", "testbed", "model", "operate.gpu", "store", "trace",
    "demo",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dualpath",
        description="LLM inference for agents in which every node's storage NIC works for every request.",
    )
    parser.add_argument("--version", action="version", version=f"dualpath {__version__}")
    verbs = parser.add_subparsers(title="commands", dest="verb", metavar="COMMAND", required=True)
    for name in _VERBS:
        # Imported here, inside main's net: Ctrl-C during the imports is an interruption like any other.
        try:
            importlib.import_module(f"dualpath.cli.{name}").add(verbs)
        except ModuleNotFoundError as error:
            _add_unusable(verbs, name.rpartition(".")[2], error)
    version = verbs.add_parser("version", help="print the version")
    version.set_defaults(run=_print_version)
    return parser


def _add_unusable(verbs: Any, name: str, error: ModuleNotFoundError) -> None:
    """A verb that needs a package which is not installed; others, such as gpu check, do without it."""
    if error.name is None or error.name.partition(".")[0] == "dualpath":
        raise error
    text = f"dualpath {name} needs the package {error.name}, which is not installed"

    def refuse(*_: object) -> NoReturn:
        raise ConfigError(text)

    verbs.add_parser(name, help=text).parse_known_args = refuse  # whatever else is said


def main(argv: Sequence[str] | None = None) -> int:
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        _end_when_the_terminal_goes()
    try:
        arguments = build_parser().parse_args(argv)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        return _fail(2, str(error))
    except DualPathError as error:
        return _fail(1, str(error))
    except KeyboardInterrupt:
        return _fail(130, "interrupted")
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _fail_unforeseen(error)


def _end_when_the_terminal_goes() -> None:
    """As SIGTERM does it; what is said meanwhile nobody reads, and saying it must not fail."""
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def end(*_: object) -> None:
        for number in terminals:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGHUP, end)


def _fail_unforeseen(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return _fail(1, f"{error.filename or 'cannot write'}: {error.strerror}")
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exc()
    hint = f"this is a bug; {TRACEBACK_VARIABLE}=1 shows where"
    return _fail(1, f"{type(error).__name__}: {error} ({hint})")


def _fail(code: int, message: str) -> int:
    print(f"dualpath: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _print_version(_: argparse.Namespace) -> int:
    print(f"dualpath {__version__}")
    return 0
