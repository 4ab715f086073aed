"""A rank of a testbed's check as a process: settings on stdin, questions and the result on stdout, as JSON lines."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from dualpath.core.errors import DualPathError
from dualpath.core.parent import end_with_parent
from dualpath.traffic.fabric_check.plan import CheckPlan, Load
from dualpath.traffic.fabric_check.rank import run_rank


def main() -> int:
    end_with_parent()
    settings = msgspec.json.decode(sys.stdin.readline())
    host, port = settings["master"]
    try:
        result = run_rank(CheckPlan(**settings["plan"]), settings["rank"], (host, port), _before_phase)
    except DualPathError as error:
        _say({"error": str(error)})
        return 1
    _say({"result": result})
    return 0


def _before_phase(number: int, load: Load) -> None:
    _say({"phase": number, "load": load.value})
    if not sys.stdin.readline():
        raise DualPathError("whoever started the check is gone")


def _say(message: dict[str, Any]) -> None:
    print(msgspec.json.encode(message).decode(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
