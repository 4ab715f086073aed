"""``dualpath trace``: look at agent trajectories, convert recordings to them, or make some up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dualpath.cli.command import add_command, add_group
from dualpath.config.fields import Options, setting
from dualpath.core.errors import ConfigError


class _StatsOptions(Options):
    """Lengths, turns and the hit rate of a cache that never forgets."""

    source: str = setting(
        positional=True, metavar="SOURCE", help="a file, a directory, or synth:32K, synth:48K, synth:64K"
    )
    json: bool = setting(False, help="for programs")


class _ConvertOptions(Options):
    """Write a recording as trajectories."""

    source: str = setting(
        positional=True, metavar="SOURCE", help="a Mooncake or Claude-Code trace, or a directory of them"
    )
    out: Path = setting(positional=True, metavar="OUT.jsonl", help="the trajectories")


class _SynthOptions(Options):
    """Make trajectories with the lengths of the paper's traces."""

    shape: str = setting(positional=True, metavar="32K|48K|64K", help="the longest context")
    agents: int = setting(500, help="how many trajectories")
    seed: int = setting(0, metavar="S", help="of their lengths")
    scale: float = setting(1.0, metavar="F", help="every length times F")
    out: Path = setting(metavar="FILE", help="the trajectories")


def add(verbs: Any) -> None:
    actions = add_group(verbs, "trace", "describe, convert or synthesise agent trajectories")
    add_command(
        actions, "stats", "lengths, turns and the hit rate of a cache that never forgets", _stats, _StatsOptions
    )
    add_command(actions, "convert", "write a recording as trajectories", _convert, _ConvertOptions)
    add_command(actions, "synth", "make trajectories", _synth, _SynthOptions)


def _stats(options: _StatsOptions) -> int:
    from dualpath.trace import describe, format_table, load_trace, read_trace
    from dualpath.trace.load import SYNTH_SCHEME

    if options.source.startswith(SYNTH_SCHEME):
        stats = describe(load_trace(options.source))
    else:
        recording = read_trace(options.source)
        size = {} if recording.block_tokens is None else {"block_tokens": recording.block_tokens}
        stats = describe(recording.trajectories, recorded_block_rate=recording.block_rate, **size)
    print(json.dumps(stats.to_json(), indent=2) if options.json else format_table(stats))
    return 0


def _convert(options: _ConvertOptions) -> int:
    from dualpath.trace import load_trace, write_trajectories

    if options.out.exists() and Path(options.source).exists() and options.out.samefile(options.source):
        raise ConfigError(f"{options.out}: would overwrite what is being read")
    trajectories = load_trace(options.source)
    write_trajectories(options.out, trajectories)
    print(f"{options.out}: {len(trajectories)} trajectories, {sum(len(one.rounds) for one in trajectories)} requests")
    return 0


def _synth(options: _SynthOptions) -> int:
    from dualpath.trace import scale, synthesize, write_trajectories

    trajectories = synthesize(options.shape, num_agents=options.agents, seed=options.seed)
    write_trajectories(options.out, scale(trajectories, options.scale))
    print(f"{options.out}: {len(trajectories)} trajectories, {sum(len(one.rounds) for one in trajectories)} requests")
    return 0
