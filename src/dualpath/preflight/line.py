"""What one check found: a line for people, with its state and, where it is not well, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True, slots=True)
class Line:
    """``where``: a node's name, or "" for what concerns all. ``remedy`` is empty where all is well."""

    check: str
    state: str  # ok | warn | fail
    text: str
    remedy: str = ""
    where: str = ""

    def __str__(self) -> str:
        place = f" {self.where}:" if self.where else ""
        return f"{self.state:4} {self.check}:{place} {self.text}" + (f"; {self.remedy}" if self.remedy else "")


def ok(check: str, text: str) -> Line:
    return Line(check, OK, text)


def warn(check: str, text: str, remedy: str) -> Line:
    return Line(check, WARN, text, remedy)


def fail(check: str, text: str, remedy: str) -> Line:
    return Line(check, FAIL, text, remedy)


def exit_code(lines: Iterable[Line]) -> int:
    """1 where something will not work. What is only slow or unknown does not count."""
    return int(any(line.state == FAIL for line in lines))
