"""What ``dualpath sim run`` does: one spec, every system it names, one report in the format of the benchmarks."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from dualpath.bench.terminal import print_rollout, print_serving
from dualpath.report.capacity import capacity_aps
from dualpath.report.outputs import check_outputs, write_output
from dualpath.report.updates import KINDS, run_name
from dualpath.sim.chrome_trace import ChromeTrace
from dualpath.sim.model_choice import resolve
from dualpath.sim.results import rollout_json, serving_json
from dualpath.sim.simulation import simulate
from dualpath.sim.spec import SimSpec, load_spec
from dualpath.sim.workload import load_trajectories


def run(spec_file: Path, json_file: Path | None, trace_file: Path | None, update_every: int | None = None) -> int:
    """Simulate, print, write. ``update_every``: instead of the spec's."""
    spec = load_spec(spec_file)
    if update_every is not None:
        spec = replace(spec, updates=replace(spec.updates, every=update_every))
    check_outputs({"--json": json_file, "--chrome-trace": trace_file}, spec_file)
    trace = None if trace_file is None else ChromeTrace()
    report = simulate_all(spec, trace)
    console = Console()
    (print_rollout if spec.workload.aps is None else print_serving)(console, report)
    if json_file is not None:
        write_output(json_file, json.dumps(report, indent=1) + "\n")
    if trace is not None and trace_file is not None:
        write_output(trace_file, trace.text())
    return 0


def simulate_all(spec: SimSpec, trace: ChromeTrace | None = None) -> dict[str, Any]:
    """The report: that of ``bench rollout``, or of ``bench serving`` where agents arrive. ``trace``: of the first.

    Where weights change each system runs as in ``bench rollout --update-every``: without that, with it, and wiping.
    """
    spec, cost = resolve(spec)
    trajectories = load_trajectories(spec.workload)
    online = spec.workload.aps is not None
    systems: dict[str, Any] = {}
    for name, kind in itertools.product(spec.systems, (None,) if spec.updates.every is None else KINDS):
        done = simulate(spec, cost, name, trajectories, trace if not systems else None, kind)
        systems[run_name(name, kind)] = serving_json(done) if online else rollout_json(done)
    settings = {"settings": _as_json(spec), "model_cost": dataclasses.asdict(cost)}
    if online:
        slo = {"ttft_s": spec.workload.ttft_slo_s, "tpot_s": spec.workload.tpot_slo_s}
        points = {name: {"points": [point], "capacity_aps": capacity_aps([point])} for name, point in systems.items()}
        return {**settings, "slo": slo, "systems": points}
    num_prefill, num_decode = spec.cluster.prefill_nodes, spec.cluster.decode_nodes
    limits = {"pooled_over_prefill": (num_prefill + num_decode) / num_prefill}
    return {**settings, "systems": systems, "limits": limits}


def _as_json(spec: SimSpec) -> dict[str, Any]:
    """Every setting by table and name; what nobody set and has no value is left out."""
    return {
        table: {name: value for name, value in values.items() if value is not None}
        for table, values in dataclasses.asdict(spec).items()
    }
