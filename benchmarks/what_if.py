"""Hold what ``dualpath why`` says a minute would have been against real runs of the same agents on emulated clusters.

``python benchmarks/what_if.py --model DIR --agents 12 --storage-nic-mbps 50``: every system runs for real; from each
run's records the others are predicted. Best on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from dualpath.bench.rollout import run_rollout
from dualpath.bench.run_rollout import ClusterOpener, load_agents, vocab_size
from dualpath.bench.settings import RolloutSettings
from dualpath.bench.workload import scripts_of, vocabulary
from dualpath.cluster.setup import quiet_process
from dualpath.config import load_config
from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterStats
from dualpath.sim.replay.minute import WhatIf, what_if


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--systems", default="split,basic,shorter")
    parser.add_argument("--prefill", default="1")
    parser.add_argument("--decode", default="1")
    parser.add_argument("--agents", default="12")
    parser.add_argument("--rounds", default="6")
    parser.add_argument("--scale", default="0.02")
    parser.add_argument("--storage-nic-mbps", default="50")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    quiet_process()
    flags = {
        ("model", "dir"): str(args.model),
        ("cluster", "prefill"): args.prefill,
        ("cluster", "decode"): args.decode,
        ("cluster", "storage_nic_mbps"): args.storage_nic_mbps,
        ("workload", "trace"): "synth:64K",
        ("workload", "agents"): args.agents,
        ("workload", "rounds"): args.rounds,
        ("workload", "scale"): args.scale,
    }
    settings = load_config(RolloutSettings, None, flags)
    found = {system: asyncio.run(_live(settings, system)) for system in args.systems.split(",")}
    rows = []
    for origin, (records, stats, begin_s, _) in found.items():
        start_s = time.perf_counter()
        answer = what_if(records, stats, begin_s, time.time())
        print(f"\nfrom {origin} ({time.perf_counter() - start_s:.1f} s of simulation)", answer.refusal or "")
        rows += _rows(origin, answer, found)
        for outcome in answer.helps:
            assert answer.recorded is not None
            print(f"  would help: {outcome.what}: {outcome.latency_s:.2f} s instead of {answer.recorded.latency_s:.2f}")
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def _rows(origin: str, answer: WhatIf, found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for outcome in answer.systems:
        if outcome.what == origin or outcome.what not in found:
            continue
        records, _, _, jct_s = found[outcome.what]
        latency_s = sum(record.total_s for record in records) / len(records)
        ttft_s = sum(record.ttft_s for record in records) / len(records)
        row = {
            "from": origin,
            "system": outcome.what,
            "simulated_as_it_was_error": answer.error,
            "latency": [outcome.latency_s, latency_s],
            "ttft": [outcome.ttft_s, ttft_s],
            "finished": [outcome.finished_s, jct_s],
        }
        rows.append(row)
        errors = {name: f"{pair[0] / pair[1] - 1:+.1%}" for name, pair in row.items() if isinstance(pair, list)}
        print(f"  {outcome.what}: latency {outcome.latency_s:.2f} s, real {latency_s:.2f} s; errors {errors}")
        print(f"    the minute itself, simulated: {answer.error:+.1%}")
    return rows


async def _live(settings: RolloutSettings, system: str) -> tuple[list[RequestRecord], ClusterStats, float, float]:
    """A real run: its records, the cluster at its end, when it began, how long it took."""
    trajectories = load_agents(settings)
    scripts = scripts_of(trajectories, seed=settings.workload.seed, vocab=vocabulary(vocab_size(settings.model.dir)))
    opener = ClusterOpener(settings, scripts, Console())
    async with opener.open_cluster(system) as cluster:
        begin_s = time.time()
        result = await run_rollout(cluster.service, system, scripts)
        stats = await cluster.service.stats()
        records = cluster.service.recent(100_000)
    print(f"{system}: {len(records)} requests in {result.jct_s:.1f} s", flush=True)
    return records, stats, begin_s, result.jct_s


if __name__ == "__main__":
    main()
