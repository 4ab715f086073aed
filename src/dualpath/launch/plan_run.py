"""What ``dualpath plan`` does with its question: answer, print, write."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

from dualpath.core.errors import ConfigError
from dualpath.sim.plan import report
from dualpath.sim.plan.answer import answer
from dualpath.sim.plan.question import Question
from dualpath.sim.plan.report_json import answer_html, answer_json

WIDTH = 110  # characters


def run(question: Question, num_workers: int, json_file: Path | None, html_file: Path | None) -> int:
    """0: there is a recommendation; 1: nothing holds the limits."""
    found = answer(question, num_workers, lambda line: print(line, file=sys.stderr, flush=True))
    text = textwrap.wrap(report.sentence(found), WIDTH)
    text += ["", *report.lines(found), "", *report.resource_lines(found)]
    for one in report.assumptions(found):
        text += textwrap.wrap(one, WIDTH)
    print("\n".join(text))
    if json_file is not None:
        _write(json_file, json.dumps(answer_json(found), indent=1) + "\n")
    if html_file is not None:
        _write(html_file, answer_html(found))
    return 0 if found.best is not None else 1


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None
