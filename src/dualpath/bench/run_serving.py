"""What ``dualpath bench serving`` does: a fresh server for every system and rate, agents arriving, one report."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from dualpath.bench.run_rollout import fresh_store, vocab_size, write_outputs
from dualpath.bench.server import START_DEADLINE_S, running_server
from dualpath.bench.serving import Limits, Window, measure
from dualpath.bench.settings import MAX_AGENTS, ServingSettings, as_json, rates, serve_config, system_names
from dualpath.bench.terminal import print_serving
from dualpath.bench.workload import Script, max_context_tokens, scripts_of, vocabulary
from dualpath.config import ServeConfig
from dualpath.config.fields import entries, tables
from dualpath.core.errors import ConfigError
from dualpath.report.capacity import capacity_aps, find_capacity
from dualpath.report.progress import RunProgress
from dualpath.trace.arrivals import arrival_times_s
from dualpath.trace.load import load_trace


def run(settings: ServingSettings) -> int:
    """Compare, print, write."""
    console = Console()
    serving = settings.serving
    limits = Limits(serving.ttft_slo_s, serving.tpot_slo_s)
    systems = asyncio.run(_compare(settings, limits, RunProgress(console)))
    result = {
        "settings": as_json(settings),
        "slo": {"ttft_s": limits.ttft_s, "tpot_s": limits.tpot_s},
        "systems": systems,
    }
    print_serving(console, result)
    write_outputs(settings, result)
    return 0


async def _compare(settings: ServingSettings, limits: Limits, progress: RunProgress) -> dict[str, Any]:
    serving, out = settings.serving, {}
    for system in system_names(settings.workload.systems):

        async def at(aps: float, system: str = system) -> dict[str, Any]:
            return await _point(settings, system, aps, limits, progress)

        if serving.find_capacity:
            points = await find_capacity(at, serving.min_aps, serving.max_aps, serving.tolerance)
        else:
            points = [await at(rate) for rate in rates(serving.aps or "")]
        out[system] = {"points": points, "capacity_aps": capacity_aps(points)}
    return out


async def _point(
    settings: ServingSettings, system: str, aps: float, limits: Limits, progress: RunProgress
) -> dict[str, Any]:
    window = Window(settings.serving.warm_up_s, settings.serving.duration_s)
    if not 1 <= aps * window.end_s <= MAX_AGENTS:
        raise ConfigError(f"{aps:g} agents per second for {window.end_s:g} s are not between 1 and {MAX_AGENTS} agents")
    moments = list(arrival_times_s(aps, window.end_s, settings.workload.seed))
    if not moments:
        raise ConfigError(f"at {aps:g} agents per second none arrives within {window.end_s:g} s; see --duration-s")
    scripts = _scripts(settings, len(moments))
    with fresh_store(settings.store.url, system) as url:
        config = serve_config(settings, system, url, max_context_tokens(scripts))
        async with running_server(_flags(config), start_s=_start_s(config)) as server:
            with progress.run(f"{system} {aps:.3g}/s", None) as advance:
                return await measure(server, aps, moments, scripts, window, limits, advance)


def _scripts(settings: ServingSettings, num_agents: int) -> Sequence[Script]:
    work = settings.workload
    trajectories = load_trace(
        work.trace,
        agents=num_agents,
        rounds=work.rounds,
        scale=work.scale,
        think=work.think,
        seed=work.seed,
    )
    return scripts_of(trajectories, seed=work.seed, vocab=vocabulary(vocab_size(settings.model.dir)))


def _start_s(config: ServeConfig) -> float:
    return START_DEADLINE_S + (config.vllm.start_s if config.cluster.engine == "vllm" else 0.0)


def _flags(config: ServeConfig) -> list[str]:
    """The command line that makes this configuration; the port is the server's own choice."""
    flags: list[str] = []
    for name, table in tables(ServeConfig):
        for entry in entries(table):
            value = getattr(getattr(config, name), entry.name)
            if name == "gateway" or value is None or value == entry.default:
                continue
            for one in value if entry.many else (value,):
                text = str(one).lower() if isinstance(one, bool) else str(one)
                flags.append(f"{entry.flag}={text}")  # text may begin with a dash
    return flags
