"""A comparison as one HTML page without any external resource: what came out, figures, numbers, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dualpath.bench.compare import INVALID_SYSTEMS, differing_systems
from dualpath.bench.headline import rollout_headline, serving_headline, title
from dualpath.bench.nic_table import COLUMNS as NIC_COLUMNS
from dualpath.bench.nic_table import NOTE, UNITS, has_nics, nic_rows
from dualpath.bench.report_css import CSS
from dualpath.bench.report_figures import jct_bars, nic_lines, path_bars, serving_lines, ttft_bars, ttft_over_time

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
    is_serving = "slo" in report
    sections = _serving(report) if is_serving else _rollout(report)
    headline = serving_headline(report) if is_serving else rollout_headline(report)
    body = "".join(f"<section>{section}</section>" for section in [*sections, _settings(report["settings"])])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>DualPath comparison</title><style>{CSS}</style></head>"
        f"<body><h1>{escape(headline)}</h1>{_notes(report, is_serving)}{body}</body></html>\n"
    )


def _notes(report: Mapping[str, Any], is_serving: bool) -> str:
    systems = report["systems"]
    out = ""
    if not is_serving and (wrong := differing_systems(systems)):
        out += f'<p class="bad">Tokens differ between systems: {escape(", ".join(map(title, wrong)))}.</p>'
    if INVALID_SYSTEMS & set(systems):
        out += (
            '<p class="dim">Oracle moves no KV at all. Its answers are meaningless; only its time is of interest.</p>'
        )
    return out


def _rollout(report: Mapping[str, Any]) -> list[str]:
    return [
        _figure("Job completion time", jct_bars(report), "All agents start at once; shorter is better."),
        _figure(
            "What the storage NICs did",
            nic_lines(report),
            "Bytes read from storage by each node in each second. An even use of all nodes is what DualPath is for.",
        ),
        _figure(
            "Where the time to first token goes",
            ttft_bars({title(name): one["phases_s"] for name, one in report["systems"].items()}),
            "Means over all requests.",
        ),
        _figure("Which path requests took", path_bars(report), "Share of requests by where their stored KV was read."),
        "<h2>Numbers</h2>"
        + _table("system", COLUMNS, [(title(n), s) for n, s in report["systems"].items()])
        + '<p class="dim">SNIC max/avg: most loaded node over the mean of all nodes, per second, averaged over the'
        " first 80 % of the run.</p>",
        *([_nics(report)] if has_nics(report) else []),
    ]


def _nics(report: Mapping[str, Any]) -> str:
    columns = [
        (f"{name} {unit}".strip(), lambda cells, number=number: escape(cells[number]))
        for number, (name, unit) in enumerate(zip(NIC_COLUMNS, UNITS, strict=True))
    ]
    rows = [(title(name), cells) for name, cells in nic_rows(report)]
    return f'<h2>Network interfaces</h2>{_table("system", columns, rows)}<p class="dim">{NOTE}</p>'


def _serving(report: Mapping[str, Any]) -> list[str]:
    systems = report["systems"]
    rows = [(title(name), point) for name, one in systems.items() for point in one["points"]]
    phases = {f"{title(n)} @ {p['aps']:.3g}": p["phases_s"] for n, s in systems.items() for p in s["points"]}
    return [
        _figure(
            "Time to first token against load",
            serving_lines(report),
            "Mean over the window after the warm-up. A line that shoots up is a system that has run out of something.",
        ),
        _figure(
            "Time to first token over time",
            ttft_over_time(report),
            "Mean over the requests that arrived in each twelfth of the window. A line that keeps rising is a queue"
            " that grows without bound; it ends where requests were still waiting at the end of the measurement.",
        ),
        _figure("Where the time to first token goes", ttft_bars(phases), "Means over all requests of the window."),
        "<h2>Numbers</h2>" + _table("system", POINT_COLUMNS, rows),
    ]


def _figure(heading: str, drawing: str, caption: str) -> str:
    return f"<h2>{heading}</h2><figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def _table(first: str, columns: Sequence[tuple[str, Any]], rows: Sequence[tuple[str, Any]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in (first, *(name for name, _ in columns)))
    body = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{show(one)}</td>' for _, show in columns)}</tr>"
        for name, one in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _settings(settings: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><td>{escape(f"{table}.{name}")}</td><td class="text">{escape(str(value))}</td></tr>'
        for table, values in settings.items()
        for name, value in (values.items() if isinstance(values, Mapping) else [("", values)])
    )
    return f'<h2>Settings</h2><div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"
