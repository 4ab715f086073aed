"""A report's figures: which numbers go into which chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dualpath.report.headline import title
from dualpath.report.svg import Mark, lines, stacked_bars

TTFT_PARTS: Mapping[str, tuple[str, ...]] = {
    "scheduling": ("queued",),
    "allocation": ("placed",),
    "reading": ("reading",),
    "prefill": ("ready", "prefilling"),
}
PATHS = {"none": "nothing to read", "prefill": "prefill node", "decode": "decode node", "split": "both"}


def ttft_parts(phases: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean seconds before the first token, by what was waited for."""
    return {part: sum(phases.get(phase, {}).get("mean", 0.0) for phase in names) for part, names in TTFT_PARTS.items()}


def jct_bars(report: Mapping[str, Any]) -> str:
    systems = report["systems"]
    first = next(iter(systems))
    limit = report["limits"]["pooled_over_prefill"]
    marks = [Mark(systems[first]["jct_s"] / limit, f"limit: pooled NICs, (P+D)/P = {limit:.3g}")]
    if "oracle" in systems:
        marks.append(Mark(systems["oracle"]["jct_s"], "Oracle: no I/O at all"))
    rows = {title(name): [one["jct_s"]] for name, one in systems.items()}
    return stacked_bars(rows, ["JCT"], "seconds", marks, label="Job completion time by system")


def nic_lines(report: Mapping[str, Any]) -> str:
    """A small chart for each system, all on one scale."""
    out = legend(nodes_of(report))
    for name, one in report["systems"].items():
        if not any(map(sum, one["nic_series"].values())):
            out += f'<p class="dim">{escape(title(name))}: no reads from storage.</p>'
            continue
        balance = one["snic_max_avg"]
        caption = f"{title(name)}: max/avg {balance:.2f}" if balance is not None else title(name)
        out += f"<figcaption>{escape(caption)}</figcaption>" + nic_panel(report, name)
    return out


def nodes_of(report: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(node for one in report["systems"].values() for node in one["nic_series"]))


def nic_panel(report: Mapping[str, Any], system: str, *, height: int = 170) -> str:
    """One system's reads from storage, by node, in every second; on axes that hold all systems."""
    every = [windows for one in report["systems"].values() for windows in one["nic_series"].values()]
    series = {
        node: [(second + 0.5, value / 1e6) for second, value in enumerate(windows)]
        for node, windows in report["systems"][system]["nic_series"].items()
    }
    return lines(
        series,
        "seconds",
        "MB/s",
        x_top=float(max(map(len, every), default=1)),
        y_top=max((value for windows in every for value in windows), default=1.0) / 1e6,
        height=height,
        label=f"Storage reads, {title(system)}",
    )


def ttft_bars(phases_of: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    rows = {name: list(ttft_parts(phases).values()) for name, phases in phases_of.items()}
    return legend(list(TTFT_PARTS)) + stacked_bars(
        rows, list(TTFT_PARTS), "seconds", label="Time to first token by part"
    )


def path_bars(report: Mapping[str, Any]) -> str:
    rows = {
        title(name): [100 * one["path_shares"].get(path, 0.0) for path in PATHS]
        for name, one in report["systems"].items()
    }
    parts = list(PATHS.values())
    return legend(parts) + stacked_bars(rows, parts, "% of requests", label="Read paths by system", show_sum=False)


def serving_lines(report: Mapping[str, Any]) -> str:
    series = {
        title(name): [(p["aps"], p["ttft_s"]["mean"]) for p in one["points"] if p["ttft_s"]]
        for name, one in report["systems"].items()
    }
    return _ttft_chart(report, series, "agents arriving per second", "Mean time to first token against arrival rate")


def ttft_over_time(report: Mapping[str, Any]) -> str:
    """Every system at every rate: a flat line is a system that keeps up, a rising one a queue without bound."""
    series = {
        f"{title(name)} @ {one['aps']:.3g}": [(x, y) for x, y in one.get("ttft_over_time_s", [])]
        for name, system in report["systems"].items()
        for one in system["points"]
        if one.get("ttft_over_time_s")
    }
    x_unit = "seconds since the warm-up, when the request arrived"
    return _ttft_chart(report, series, x_unit, "Mean time to first token over time")


def _ttft_chart(
    report: Mapping[str, Any], series: Mapping[str, Sequence[tuple[float, float]]], x_unit: str, label: str
) -> str:
    """With the limit, unless everything is so far below it that nothing else would be seen."""
    limit = report["slo"]["ttft_s"]
    peak = max((y for line in series.values() for _, y in line), default=1.0)
    mark = Mark(limit, f"limit {limit:g} s") if limit <= 5 * peak else None
    return legend(list(series)) + lines(series, x_unit, "seconds", limit=mark, points=True, height=280, label=label)


def legend(names: Sequence[str]) -> str:
    items = "".join(f'<span><i class="c{i % 8}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<div class="legend">{items}</div>'
