"""Steps 8 and 9: the same agents on one system after the other, storage NICs paced; then over NIXL."""

from __future__ import annotations

import asyncio
import random

from dualpath.bench.compare import INVALID_SYSTEMS
from dualpath.bench.rollout import run_rollout
from dualpath.bench.workload import Script, Step
from dualpath.core.errors import ConfigError
from dualpath.report.results import RunResult, path_shares, tokens_sha256
from dualpath.store.nixl_api import nixl_api
from dualpath.validation.gpu.result import Findings, SkipStepError
from dualpath.validation.gpu.setting import Setting

SYSTEMS = ("basic", "shorter", "split", "oracle")


def run(setting: Setting, found: Findings) -> None:
    scale = setting.scale
    title = f"{scale.agents} agents, {scale.rounds} rounds, storage NICs of {scale.nic_mbps:g} Mbit/s"
    table = found.table(title, "system", "seconds", "of split", "hit rate", "tokens")
    runs = {system: asyncio.run(_run(setting, system, "local")) for system in SYSTEMS}
    for system, done in runs.items():
        prompt = sum(turn.record.num_prompt_tokens for turn in done.turns)
        hits = sum(turn.record.num_hit_tokens for turn in done.turns)
        ratio = done.jct_s / runs["split"].jct_s
        digest = "nonsense" if system in INVALID_SYSTEMS else tokens_sha256(done.turns)[:12]
        table.rows.append([system, f"{done.jct_s:.2f}", f"{ratio:.2f}", f"{hits / prompt:.0%}", digest])
    if setting.scale.dtype == "float32":
        same = len({tokens_sha256(runs[s].turns) for s in SYSTEMS if s not in INVALID_SYSTEMS}) == 1
        found.verdict("systems generate the same tokens", same, same)
    times = [runs[system].jct_s for system in ("split", "shorter", "basic")]
    is_ordered = times[0] <= 1.02 * times[1] and times[1] < times[2]
    passed = is_ordered if setting.device.type == "cuda" else None
    found.verdict("split is no slower than shorter, shorter faster than basic", is_ordered, passed)
    found.notes.append(f"split read by {path_shares([turn.record for turn in runs['split'].turns])}")


def run_over_nixl(setting: Setting, found: Findings) -> None:
    """Device memory registered with UCX; everything else as in the rollout before."""
    try:
        nixl_api()
    except ConfigError as error:
        raise SkipStepError(str(error)) from None
    table = found.table("split", "transport", "seconds", "tokens")
    for transport in ("local", "nixl"):
        done = asyncio.run(_run(setting, "split", transport))
        table.rows.append([transport, f"{done.jct_s:.2f}", tokens_sha256(done.turns)[:12]])
    if setting.scale.dtype == "float32":
        same = table.rows[0][2] == table.rows[1][2]
        found.verdict("NIXL and local copies lead to the same tokens", same, same)


async def _run(setting: Setting, system: str, transport: str) -> RunResult:
    scripts, scale = _scripts(setting), setting.scale
    async with setting.cluster(
        setting.model_dir("qwen3", scale.dtype, **scale.rollout_model),
        scale.dtype,
        context_tokens=max(script.total_tokens for script in scripts) + 64,
        system=system,
        transport=transport,
        storage_nic_mbps=scale.nic_mbps,
        allow_invalid_answers=system in INVALID_SYSTEMS,
    ) as cluster:
        return await run_rollout(cluster.service, system, scripts)


def _scripts(setting: Setting) -> list[Script]:
    scale, draw = setting.scale, random.Random(11)

    def step(number: int) -> Step:
        num_tokens = scale.append_tokens if number else scale.first_tokens
        return Step(tuple(draw.randrange(32, 122) for _ in range(num_tokens)), scale.generate_tokens)

    return [Script(tuple(step(number) for number in range(scale.rounds))) for _ in range(scale.agents)]
