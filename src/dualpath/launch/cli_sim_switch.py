"""``dualpath sim switch``: what nodes that change between prefill and decode gain when a load's balance shifts."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualpath.core.errors import ConfigError
from dualpath.launch.sim_outputs import check_outputs, write_output

if TYPE_CHECKING:
    from dualpath.sim.switch_study import SwitchRow, SwitchStudy

MIN_WINDOW_S = 0.01  # each is an event


def add(actions: Any) -> None:
    switch = actions.add_parser(
        "switch",
        help="nodes that change role on a load whose balance shifts, against every fixed P/D ratio",
        description="Agents whose turns first append much and then generate much: job completion time on every division"
        " of the nodes into prefill and decode, and on nodes that change role when the measured queues say so.",
    )
    switch.add_argument("--model", default="Qwen2.5-32B", metavar="NAME|FILE", help="(default: Qwen2.5-32B)")
    switch.add_argument("--gpu", default="H800", metavar="NAME", help="(default: H800)")
    switch.add_argument("--nodes", type=int, default=8, metavar="N", help="P + D (default: 8)")
    switch.add_argument("--agents", type=int, default=400, metavar="N", help="(default: 400)")
    switch.add_argument("--turns", type=int, default=20, metavar="N", help="of each agent (default: 20)")
    switch.add_argument("--seed", type=int, default=0, metavar="N", help="of the load (default: 0)")
    switch.add_argument(
        "--switch-s", type=float, default=5.0, metavar="S", help="cost of a change, drained (default: 5)"
    )
    switch.add_argument("--window-s", type=float, default=5.0, metavar="S", help="of measuring queues (default: 5)")
    switch.add_argument("--dwell-s", type=float, default=15.0, metavar="S", help="between changes (default: 15)")
    switch.add_argument("--json", type=Path, metavar="OUT", help="write the results for programs")
    switch.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dualpath.sim.compiled import require_current

    require_current()
    from dualpath.launch.cli_plan import DECODE_BASE_S, EFFICIENCY, PREFILL_BASE_S
    from dualpath.scheduler.role_switch import RoleSwitchSettings
    from dualpath.sim.model_choice import resolve
    from dualpath.sim.spec import ClusterSpec, ModelSpec, SimSpec
    from dualpath.sim.switch_study import ShiftingLoad, study

    check_outputs({"--json": arguments.json})
    if not 2 <= arguments.nodes <= 64:
        raise ConfigError(f"--nodes: must be from 2 to 64, not {arguments.nodes}")
    if not 0 <= arguments.switch_s < 1e6:
        raise ConfigError(f"--switch-s: must be from 0 to 1e6, not {arguments.switch_s}")
    if not MIN_WINDOW_S <= arguments.window_s < 1e6:
        raise ConfigError(f"--window-s: must be from {MIN_WINDOW_S:g} to 1e6, not {arguments.window_s}")
    if arguments.seed < 0:
        raise ConfigError(f"--seed: must be at least 0, not {arguments.seed}")
    half = arguments.nodes // 2
    cluster = ClusterSpec(prefill_nodes=half, decode_nodes=arguments.nodes - half, staging_bytes=320_000_000_000)
    model = ModelSpec(
        name=arguments.model,
        gpu=arguments.gpu,
        efficiency=EFFICIENCY,
        prefill_base_s=PREFILL_BASE_S,
        decode_base_s=DECODE_BASE_S,
    )
    spec, cost = resolve(SimSpec(cluster=cluster, model=model))
    load = ShiftingLoad(agents=arguments.agents, turns=arguments.turns, seed=arguments.seed)
    settings = RoleSwitchSettings(window_s=arguments.window_s, dwell_s=arguments.dwell_s)
    found = study(spec, cost, "shorter", load, settings, arguments.switch_s, _progress)
    print("\n".join(_lines(found)))
    if arguments.json is not None:
        report = {"load": dataclasses.asdict(load), "settings": dataclasses.asdict(settings), **_as_json(found)}
        write_output(arguments.json, json.dumps(report, indent=1) + "\n")
    return 0


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _lines(found: SwitchStudy) -> list[str]:
    lines = ["P/D          JCT s  TTFT s  TPOT ms  changes"]
    best, worst = found.best_fixed, found.worst_fixed
    for row in found.fixed:
        mark = " best fixed" if row is best else " worst fixed" if row is worst else ""
        lines.append(_line(f"{row.num_prefill}P{found.num_nodes - row.num_prefill}D fixed", row) + mark)
    for row in found.changing:
        lines.append(_line(f"{row.num_prefill}P{found.num_nodes - row.num_prefill}D, changes", row))
    for row in found.changing:
        start = f"{row.num_prefill}P{found.num_nodes - row.num_prefill}D"
        gain, most = best.jct_s / row.jct_s, worst.jct_s / row.jct_s
        lines.append(f"beginning as {start}: {gain:.2f}x the best fixed ratio, {most:.2f}x the worst")
    return lines


def _line(name: str, row: SwitchRow) -> str:
    changes = "-" if row.changes is None else f"{len(row.changes)}, ends with {row.last_prefill} prefill nodes"
    return f"{name:14}{row.jct_s:>6.0f}{row.ttft_s:>8.2f}{row.tpot_s * 1000:>9.1f}  {changes}"


def _as_json(found: SwitchStudy) -> dict[str, Any]:
    best, worst = found.best_fixed.jct_s, found.worst_fixed.jct_s
    changing = [
        dataclasses.asdict(row) | {"gain_over_best_fixed": best / row.jct_s, "gain_over_worst_fixed": worst / row.jct_s}
        for row in found.changing
    ]
    return {"nodes": found.num_nodes, "fixed": [dataclasses.asdict(row) for row in found.fixed], "changing": changing}
