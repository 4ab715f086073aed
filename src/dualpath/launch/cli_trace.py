"""``dualpath trace``: look at agent trajectories, convert recordings to them, or make some up."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dualpath.core.errors import ConfigError


def add(verbs: Any) -> None:
    trace = verbs.add_parser("trace", help="describe, convert or synthesise agent trajectories")
    actions = trace.add_subparsers(title="commands", dest="action", metavar="COMMAND", required=True)
    stats = actions.add_parser("stats", help="lengths, turns and the hit rate of a cache that never forgets")
    stats.add_argument("source", metavar="SOURCE", help="a file, a directory, or synth:32K, synth:48K, synth:64K")
    stats.add_argument("--json", action="store_true", help="for programs")
    stats.set_defaults(run=_stats)
    convert = actions.add_parser("convert", help="write a recording as trajectories")
    convert.add_argument("source", metavar="SOURCE", help="a Mooncake or Claude-Code trace, or a directory of them")
    convert.add_argument("out", type=Path, metavar="OUT.jsonl")
    convert.set_defaults(run=_convert)
    _add_synth(actions)


def _add_synth(actions: Any) -> None:
    synth = actions.add_parser(
        "synth", help="make trajectories", description="Make trajectories with the lengths of the paper's traces."
    )
    synth.add_argument("shape", metavar="32K|48K|64K", help="the longest context")
    synth.add_argument("--agents", type=int, default=500, metavar="N", help="default: 500")
    synth.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    synth.add_argument("--scale", type=float, default=1.0, metavar="F", help="every length times F (default: 1)")
    synth.add_argument("--out", type=Path, required=True, metavar="FILE")
    synth.set_defaults(run=_synth)


def _stats(arguments: argparse.Namespace) -> int:
    from dualpath.trace import describe, format_table, load_trace, read_trace
    from dualpath.trace.load import SYNTH_SCHEME

    if arguments.source.startswith(SYNTH_SCHEME):
        stats = describe(load_trace(arguments.source))
    else:
        recording = read_trace(arguments.source)
        size = {} if recording.block_tokens is None else {"block_tokens": recording.block_tokens}
        stats = describe(recording.trajectories, recorded_block_rate=recording.block_rate, **size)
    print(json.dumps(stats.to_json(), indent=2) if arguments.json else format_table(stats))
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from dualpath.trace import load_trace, write_trajectories

    if arguments.out.exists() and Path(arguments.source).exists() and arguments.out.samefile(arguments.source):
        raise ConfigError(f"{arguments.out}: would overwrite what is being read")
    trajectories = load_trace(arguments.source)
    write_trajectories(arguments.out, trajectories)
    print(f"{arguments.out}: {len(trajectories)} trajectories, {sum(len(one.rounds) for one in trajectories)} requests")
    return 0


def _synth(arguments: argparse.Namespace) -> int:
    from dualpath.trace import scale, synthesize, write_trajectories

    trajectories = synthesize(arguments.shape, num_agents=arguments.agents, seed=arguments.seed)
    write_trajectories(arguments.out, scale(trajectories, arguments.scale))
    print(f"{arguments.out}: {len(trajectories)} trajectories, {sum(len(one.rounds) for one in trajectories)} requests")
    return 0
