"""A spec whose model has costs of its own, as a profile gives them: the planner takes everything from there."""

from __future__ import annotations

from typing import Any

from tests.sim.clusters import small_spec

from dualpath.sim.spec import SimSpec

MODEL = {
    "kv_bytes_per_token": 50_000,
    "num_layers": 60,
    "prefill_base_s": 0.05,
    "prefill_token_s": 4e-5,
    "prefill_group_token_s": 1e-4,
    "decode_base_s": 0.02,
    "decode_per_request_s": 1e-3,
}


def planned_spec(**changes: dict[str, Any]) -> SimSpec:
    workload = {"trace": "synth:32K", "rounds": 8, **changes.pop("workload", {})}
    return small_spec(model=MODEL, workload=workload, **changes)
