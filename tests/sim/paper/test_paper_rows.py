"""Rows, constants and the page: well-formed, one value for each constant, nothing external."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from dualpath.core.errors import ConfigError
from dualpath.sim.paper.catalogue import EXPERIMENTS, choose
from dualpath.sim.paper.constants import CONSTANTS, constants_json, model_spec
from dualpath.sim.paper.page import render
from dualpath.sim.paper.rows import Bars, Lines, Report, Row
from dualpath.sim.paper.run import Run, traffic_max_avg


def test_relative_error_needs_both_numbers() -> None:
    assert Row("a", "a", "s", 4.0, 5.0).rel_error == pytest.approx(0.25)
    assert Row("a", "a", "s", -4.0, -5.0).rel_error == pytest.approx(0.25)
    assert Row("a", "a", "s", None, 5.0).rel_error is None
    assert Row("a", "a", "s", 4.0, None).rel_error is None


def test_row_json_has_the_documented_keys() -> None:
    found = Row("a", "b", "s", 1.0, 1.0, True, "why").to_json()
    assert list(found) == ["id", "what", "unit", "paper", "ours", "rel_error", "fitted", "note"]


@pytest.mark.parametrize("model", CONSTANTS)
def test_every_constant_is_in_the_models_spec_once_with_meaning_and_source(model: str) -> None:
    spec = model_spec(model)
    keys = [one.key for one in CONSTANTS[model]]
    assert len(keys) == len(set(keys))
    for one in CONSTANTS[model]:
        table, name = one.key.split(".")
        assert getattr(getattr(spec, table), name) == one.value
        assert one.meaning
        assert one.source
    json.dumps(constants_json())


def test_a_fit_says_so_in_its_source() -> None:
    for constants in CONSTANTS.values():
        for one in constants:
            assert one.fitted == ("fitted" in one.source), one.key


def test_no_experiment_changes_a_fitted_constant() -> None:
    """Except those that say in their title that they leave the paper, and the one that makes compute free."""
    for one in EXPERIMENTS.values():
        if one.id.startswith("beyond") or one.id == "bottleneck_range":
            continue
        for is_full in (False, True):
            for run in one.runs(is_full):
                constants = {constant.key for constant in CONSTANTS[run.model]}
                assert not constants & {key for key, _ in run.settings}, (one.id, run)


def test_every_run_has_a_valid_spec() -> None:
    for one in EXPERIMENTS.values():
        for is_full in (False, True):
            for run in one.runs(is_full):
                assert run.spec.systems == [run.system]
                assert run.weight > 0


def test_full_size_is_the_papers() -> None:
    runs = list(EXPERIMENTS["table3"].runs(True))
    assert Run("660B", "shorter", 48, 96, 48 * 1024) in runs


def test_unknown_experiment_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--only: no experiment 'fig99'; choose from table1"):
        choose("table1,fig99")
    with pytest.raises(ConfigError, match="names no experiment"):
        choose(" ,")


def test_choice_keeps_the_papers_order() -> None:
    assert [one.id for one in choose("fig8,table1")] == ["table1", "fig8"]


class _Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href", "xlink:href"} & {name for name, _ in attrs}, "the page must stand alone"
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_stands_alone_and_escapes() -> None:
    rows = [Row("a", "x < y", "s", 100.0, 120.0, True, "why & how"), Row("b", "c", "", None, -2.5)]
    figures = [
        Bars("bars", "s", {"a": 1.0}, {"a": 2.0}),
        Lines("lines", "x", "y", {"p": [(0.0, 1.0)]}, {"o": [(0.0, 1.0), (1.0, 3.0)]}, limit=2.0),
    ]
    page = render([(EXPERIMENTS["fig8"], Report(rows, figures, "text"))], is_full=False)
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert "x &lt; y" in page
    assert "+20.0%" in page
    assert "-2.5" in page
    assert "http" not in page
    assert "reduced size" in page


def test_a_note_that_rows_share_stands_once_and_limits_are_drawn() -> None:
    rows = [Row(name, name, "", None, 1.0, note="as one") for name in "ab"] + [Row("c", "c", "", None, 1.0, note="own")]
    figures = [Lines("lines", "x", "y", {}, {"o": [(0.0, 1.0)]}, limit=2.0), Bars("bars", "s", {}, {"a": 2.0})]
    page = render([(EXPERIMENTS["fig8"], Report(rows, figures))], is_full=False)
    assert page.count("as one") == page.count(">own<") == 1
    assert page.index(">b<") < page.index("as one") < page.index(">c<")
    head, _, bars = page.partition("bars</figcaption>")
    assert 'class="ours"' in head.partition("lines</figcaption>")[2], "no class that hides its limit"
    assert bars.lstrip().startswith('<div class="bars ours">')


def test_balance_counts_a_window_with_what_moved_in_it() -> None:
    series = {"a": [9.0, 3.0, 1.0], "b": [3.0, 5.0, 0.0]}
    assert traffic_max_avg(series, 1) == pytest.approx((9 + 5 + 1) / (6 + 4 + 0.5))
    assert traffic_max_avg(series, 2) == pytest.approx(12 / 10)  # the last window is not whole
    assert traffic_max_avg({"a": [0.0], "b": [0.0]}, 1) is None
    assert traffic_max_avg({}, 1) is None
