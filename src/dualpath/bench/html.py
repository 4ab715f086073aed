"""A comparison as one HTML page without any external resource: what came out, figures, numbers, settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from dualpath.bench.compare import INVALID_SYSTEMS, differing_systems
from dualpath.report.figures import jct_bars, nic_lines, path_bars, serving_lines, ttft_bars, ttft_over_time
from dualpath.report.headline import rollout_headline, serving_headline, title
from dualpath.report.nic_table import COLUMNS as NIC_COLUMNS
from dualpath.report.nic_table import NOTE, UNITS, has_nics, nic_rows
from dualpath.report.page import page

Columns: TypeAlias = Sequence[tuple[str, Callable[[Any], str]]]
Table: TypeAlias = tuple[str, list[str], list[list[str]], str]  # heading, names of columns, rows, note

COLUMNS = (
    ("JCT s", lambda s: _number(s["jct_s"], 1, 2)),
    ("hit rate", lambda s: f"{s['hit_rate']:.1%}"),
    ("TTFT p50 s", lambda s: _number(s["ttft_s"].get("p50"), 1, 3)),
    ("TTFT p99 s", lambda s: _number(s["ttft_s"].get("p99"), 1, 3)),
    ("TTST mean ms", lambda s: _number(s["ttst_s"].get("mean"), 1000, 1)),
    ("TPOT mean ms", lambda s: _number(s["tpot_s"].get("mean"), 1000, 1)),
    ("SNIC max/avg", lambda s: _number(s["snic_max_avg"], 1, 2)),
    ("read MiB", lambda s: _number(sum(s["storage_read_bytes"].values()), 2**-20, 0)),
    ("generated tokens/s", lambda s: _number(s["generated_tokens_per_s"], 1, 1)),
)
POINT_COLUMNS = (
    ("APS", lambda p: _number(p["aps"], 1, 3)),
    ("requests", lambda p: str(p["requests"])),
    ("TTFT mean s", lambda p: _number(p["ttft_s"].get("mean"), 1, 3)),
    ("TTFT p99 s", lambda p: _number(p["ttft_s"].get("p99"), 1, 3)),
    ("TTST mean ms", lambda p: _number(p["ttst_s"].get("mean"), 1000, 1)),
    ("TPOT mean ms", lambda p: _number(p["tpot_s"].get("mean"), 1000, 1)),
    ("steady", lambda p: "yes" if p["steady"] else "no"),
    ("SLO", lambda p: "met" if p["meets_slo"] else "missed"),
)


def render(report: Mapping[str, Any]) -> str:
    """The page of a rollout's or a serving comparison's JSON."""
    systems = report["systems"]
    is_serving = "slo" in report
    differing = [] if is_serving else map(title, differing_systems(systems))
    return page(
        "comparison.html",
        title="DualPath comparison",
        headline=serving_headline(report) if is_serving else rollout_headline(report),
        differing=list(differing),
        has_oracle=bool(INVALID_SYSTEMS & set(systems)),
        figures=_serving_figures(report) if is_serving else _rollout_figures(report),
        tables=_serving_tables(report) if is_serving else _rollout_tables(report),
        settings=list(_settings(report["settings"])),
    )


def _rollout_figures(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(heading, drawing, caption)"""
    phases = {title(name): one["phases_s"] for name, one in report["systems"].items()}
    return [
        ("Job completion time", jct_bars(report), "All agents start at once; shorter is better."),
        (
            "What the storage NICs did",
            nic_lines(report),
            "Bytes read from storage by each node in each second. An even use of all nodes is what DualPath is for.",
        ),
        ("Where the time to first token goes", ttft_bars(phases), "Means over all requests."),
        ("Which path requests took", path_bars(report), "Share of requests by where their stored KV was read."),
    ]


def _rollout_tables(report: Mapping[str, Any]) -> list[Table]:
    rows = [(title(name), one) for name, one in report["systems"].items()]
    note = (
        "SNIC max/avg: most loaded node over the mean of all nodes, per second, averaged over the first 80 %"
        " of the run."
    )
    tables = [_table("Numbers", COLUMNS, rows, note)]
    if has_nics(report):
        head = ["system", *(f"{name} {unit}".strip() for name, unit in zip(NIC_COLUMNS, UNITS, strict=True))]
        tables.append(("Network interfaces", head, [[title(name), *cells] for name, cells in nic_rows(report)], NOTE))
    return tables


def _serving_figures(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(heading, drawing, caption)"""
    systems = report["systems"]
    phases = {f"{title(n)} @ {p['aps']:.3g}": p["phases_s"] for n, s in systems.items() for p in s["points"]}
    return [
        (
            "Time to first token against load",
            serving_lines(report),
            "Mean over the window after the warm-up. A line that shoots up is a system that has run out of something.",
        ),
        (
            "Time to first token over time",
            ttft_over_time(report),
            (
                "Mean over the requests that arrived in each twelfth of the window. A line that keeps rising is a queue"
                " that grows without bound; it ends where requests were still waiting at the end of the measurement."
            ),
        ),
        ("Where the time to first token goes", ttft_bars(phases), "Means over all requests of the window."),
    ]


def _serving_tables(report: Mapping[str, Any]) -> list[Table]:
    rows = [(title(name), point) for name, one in report["systems"].items() for point in one["points"]]
    return [_table("Numbers", POINT_COLUMNS, rows)]


def _table(heading: str, columns: Columns, rows: Sequence[tuple[str, Any]], note: str = "") -> Table:
    head = ["system", *(name for name, _ in columns)]
    return heading, head, [[name, *(show(one) for _, show in columns)] for name, one in rows], note


def _settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for table, values in settings.items():
        for name, value in values.items() if isinstance(values, Mapping) else [("", values)]:
            yield f"{table}.{name}", str(value)


def _number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"
