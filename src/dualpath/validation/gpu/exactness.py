"""Step 3: in float32 a cluster generates, turn by turn, what transformers generates for the whole prompt."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from dualpath.bench.rollout import run_rollout
from dualpath.bench.workload import Script, Step
from dualpath.core.errors import UnsupportedModelError
from dualpath.models.kernels.cuda import cuda_kernels
from dualpath.models.load import check_transformers
from dualpath.validation.gpu.result import Findings
from dualpath.validation.gpu.setting import Setting

PATHS = ("prefill", "decode", "split")
_CONTEXT_TOKENS = 1024
_STAGING_BYTES = 64 << 20
_PRINTABLE = range(32, 127)  # of the byte vocabulary


def run(setting: Setting, found: Findings) -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        table = found.table("Tokens equal to transformers', float32", "family", *PATHS, "tokens", "kernels")
        for family in setting.scale.families:
            _check(setting, found, table.rows, family)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _check(setting: Setting, found: Findings, rows: list[list[Any]], family: str) -> None:
    try:
        check_transformers(family)
    except UnsupportedModelError as error:
        found.notes.append(str(error))
        return
    model_dir, scripts = setting.model_dir(family, "float32"), _scripts()
    expected = _by_transformers(model_dir, setting.device, scripts)
    kernels = cuda_kernels(setting.device) if setting.device.type == "cuda" else None
    if kernels is not None:
        kernels.calls.clear()
    is_same = []
    for path in PATHS:
        generated, num_hits = asyncio.run(_by_cluster(setting, model_dir, path, scripts))
        is_same.append(generated == expected and num_hits > 0)
    num_tokens = sum(len(turn) for turns in expected for turn in turns)
    ran = "cpu" if kernels is None else ", ".join(f"{name} {count}" for name, count in sorted(kernels.calls.items()))
    rows.append([family, *("yes" if same else "NO" for same in is_same), num_tokens, ran])
    found.verdict(f"{family}: exact by every path", all(is_same), all(is_same))


def _scripts() -> list[Script]:
    """Two agents of two turns; the second finds the first one's blocks."""
    draw = random.Random(7)

    def step(num_tokens: int) -> Step:
        return Step(tuple(draw.choice(_PRINTABLE) for _ in range(num_tokens)), 6)

    return [Script((step(150 + 60 * agent), step(40))) for agent in range(2)]


async def _by_cluster(
    setting: Setting, model_dir: Path, path: str, scripts: Sequence[Script]
) -> tuple[list[list[tuple[int, ...]]], int]:
    """(tokens by agent and turn, tokens that came from storage)"""
    async with setting.cluster(
        model_dir, "float32", context_tokens=_CONTEXT_TOKENS, staging_bytes=_STAGING_BYTES, path=path
    ) as cluster:
        done = await run_rollout(cluster.service, path, scripts)
    turns: list[list[tuple[int, ...]]] = [[] for _ in scripts]
    for turn in sorted(done.turns, key=lambda t: (t.agent, t.round)):
        turns[turn.agent].append(turn.token_ids)
    return turns, sum(turn.record.num_hit_tokens for turn in done.turns)


def _by_transformers(model_dir: Path, device: torch.device, scripts: Sequence[Script]) -> list[list[tuple[int, ...]]]:
    model: Any = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=False
    )
    model.to(device).eval()
    out = []
    for script in scripts:
        context: list[int] = []
        turns = []
        for step in script.steps:
            context += step.append_ids
            turns.append(_greedy(model, context, step.generate_tokens, device))
            context += turns[-1]
        out.append(turns)
    return out


@torch.inference_mode()
def _greedy(model: Any, context: Sequence[int], num_tokens: int, device: torch.device) -> tuple[int, ...]:
    ids, past, tokens = torch.tensor([list(context)], device=device), None, []
    for _ in range(num_tokens):
        answer = model(input_ids=ids, past_key_values=past, use_cache=True)
        past = answer.past_key_values
        tokens.append(int(answer.logits[0, -1].argmax()))
        ids = torch.tensor([[tokens[-1]]], device=device)
    return tuple(tokens)
