"""``dualpath sim switch``: what nodes that change between prefill and decode gain when a load's balance shifts."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualpath.cli.command import add_command
from dualpath.config.fields import Options, setting
from dualpath.report.outputs import check_outputs, write_output

if TYPE_CHECKING:
    from dualpath.sim.switch_study import SwitchRow, SwitchStudy


class _Options(Options):
    """Agents whose turns first append much and then generate much: job completion time on every division of the nodes
    into prefill and decode, and on nodes that change role when the measured queues say so.
    """

    model: str = setting("Qwen2.5-32B", metavar="NAME|FILE", help="a model of the catalogue, or a config.json")
    gpu: str = setting("H800", metavar="NAME", help="a GPU of the catalogue")
    nodes: int = setting(8, minimum=2, maximum=64, help="P + D")
    agents: int = setting(400, help="agents that all start at once")
    turns: int = setting(20, help="of each agent")
    seed: int = setting(0, minimum=0, help="of the load")
    switch_s: float = setting(5.0, minimum=0, maximum=1e6, metavar="S", help="cost of a change, drained")
    window_s: float = setting(  # each is an event
        5.0, minimum=0.01, maximum=1e6, metavar="S", help="of measuring queues"
    )
    dwell_s: float = setting(15.0, metavar="S", help="between changes")
    json: Path | None = setting(None, metavar="OUT", help="write the results for programs")


def add(actions: Any) -> None:
    text = "nodes that change role on a load whose balance shifts, against every fixed P/D ratio"
    add_command(actions, "switch", text, _run, _Options)


def _run(options: _Options) -> int:
    from dualpath.sim.compiled import require_current

    require_current()
    from dualpath.cli.assumptions import DECODE_BASE_S, EFFICIENCY, PREFILL_BASE_S
    from dualpath.scheduler.policy.role_switch import RoleSwitchSettings
    from dualpath.sim.model_choice import resolve
    from dualpath.sim.spec import ClusterSpec, ModelSpec, SimSpec
    from dualpath.sim.switch_study import ShiftingLoad, study

    check_outputs({"--json": options.json})
    half = options.nodes // 2
    cluster = ClusterSpec(prefill_nodes=half, decode_nodes=options.nodes - half, staging_bytes=320_000_000_000)
    model = ModelSpec(
        name=options.model,
        gpu=options.gpu,
        efficiency=EFFICIENCY,
        prefill_base_s=PREFILL_BASE_S,
        decode_base_s=DECODE_BASE_S,
    )
    spec, cost = resolve(SimSpec(cluster=cluster, model=model))
    load = ShiftingLoad(agents=options.agents, turns=options.turns, seed=options.seed)
    settings = RoleSwitchSettings(window_s=options.window_s, dwell_s=options.dwell_s)
    found = study(spec, cost, "shorter", load, settings, options.switch_s, _progress)
    print("\n".join(_lines(found)))
    if options.json is not None:
        report = {"load": dataclasses.asdict(load), "settings": dataclasses.asdict(settings), **_as_json(found)}
        write_output(options.json, json.dumps(report, indent=1) + "\n")
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
