"""How one rollout is run to see what a change of weights costs: without any, with one namespace each, or by wiping."""

from __future__ import annotations

UPDATE, WIPE = "update", "wipe"  # a namespace for each weights; or the store is emptied while nothing runs
KINDS = (None, UPDATE, WIPE)


def run_name(system: str, kind: str | None) -> str:
    return system if kind is None else f"{system}, {kind}"
