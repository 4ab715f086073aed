"""What a comparison comes down to, in a sentence that needs no table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TITLES = {
    "basic": "Basic",
    "layerwise": "Basic + layerwise prefill",
    "round_robin": "Both paths, round robin",
    "shorter": "DualPath",
    "split": "DualPath split",
    "oracle": "Oracle",
}
BEST_FIRST = ("split", "shorter", "round_robin", "layerwise")


def title(system: str) -> str:
    return TITLES.get(system, system)


def chosen(systems: Mapping[str, Any]) -> str | None:
    """The system that the comparison is about: the best of ours, other than the reference."""
    reference = next(iter(systems), None)
    return next((name for name in BEST_FIRST if name in systems and name != reference), None)


def rollout_headline(report: Mapping[str, Any]) -> str:
    systems, limit = report["systems"], report["limits"]["pooled_over_prefill"]
    reference, ours = next(iter(systems)), chosen(systems)
    base_s = systems[reference]["jct_s"]
    if ours is None:
        return f"{title(reference)} takes {base_s:.1f} s."
    text = (
        f"{title(ours)} finishes in {systems[ours]['jct_s'] / base_s:.2f}x of {title(reference)}'s time;"
        f" limit of pooled storage NICs {1 / limit:.2f}x"
    )
    if "oracle" in systems and reference != "oracle":
        text += f", without any I/O {systems['oracle']['jct_s'] / base_s:.2f}x"
        if systems["oracle"]["jct_s"] > base_s:
            text += ". No I/O cannot take longer: other programs wanted the cores, so these times compare nothing"
    return text + "."


def serving_headline(report: Mapping[str, Any]) -> str:
    """By capacity where it was searched, else by the highest rate tried that met the limits."""
    systems = report["systems"]
    capacity = {name: one["capacity_aps"] for name, one in systems.items()}
    reference, ours = next(iter(systems)), chosen(systems)
    limits = f"TTFT {report['slo']['ttft_s']:g} s, TPOT {1000 * report['slo']['tpot_s']:g} ms"
    if not capacity[reference] or ours is None or not capacity[ours]:
        found = ", ".join(
            f"{title(name)} {aps:.3g}" if aps else f"{title(name)} none" for name, aps in capacity.items()
        )
        return f"Agents per second within {limits}: {found}."
    return (
        f"{title(ours)} serves {capacity[ours] / capacity[reference]:.2f}x the agents of {title(reference)}"
        f" within {limits}: {capacity[ours]:.3g} against {capacity[reference]:.3g} arriving per second."
    )
