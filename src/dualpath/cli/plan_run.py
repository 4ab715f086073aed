"""What ``dualpath plan`` does with its question: answer, print, write."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

from dualpath.cluster.signals import interrupted_by_signals
from dualpath.report.outputs import check_outputs, write_output
from dualpath.sim.plan import report
from dualpath.sim.plan.answer import answer
from dualpath.sim.plan.question import Question
from dualpath.sim.plan.report_json import answer_html, answer_json

WIDTH = 110  # characters


def run(question: Question, num_workers: int, json_file: Path | None, html_file: Path | None) -> int:
    """0: there is a recommendation; 1: nothing holds the limits."""
    check_outputs({"--json": json_file, "--html": html_file})
    with interrupted_by_signals():
        found = answer(question, num_workers, lambda line: print(line, file=sys.stderr, flush=True))
    text = textwrap.wrap(report.sentence(found), WIDTH)
    text += ["", *report.lines(found), "", *report.resource_lines(found)]
    for one in report.assumptions(found):
        text += textwrap.wrap(one, WIDTH)
    print("\n".join(text))
    if json_file is not None:
        write_output(json_file, json.dumps(answer_json(found), indent=1) + "\n")
    if html_file is not None:
        write_output(html_file, answer_html(found))
    return 0 if found.best is not None else 1
