"""What one system did in one replay: the turns as they happened, and the numbers that go into the report."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dualpath.core.request import RequestRecord
from dualpath.report.summary import phase_summary, snic_max_avg, summarize


@dataclass(frozen=True, slots=True)
class TurnResult:
    """One turn of one agent: its tokens, and the scheduler's record of it."""

    agent: int
    round: int
    token_ids: tuple[int, ...]
    record: RequestRecord


@dataclass(frozen=True, slots=True)
class RunResult:
    """One system's whole replay."""

    system: str
    jct_s: float  # start of all agents to the last token of the last one
    turns: Sequence[TurnResult]
    storage_read_bytes: dict[str, int]  # by node
    kv_transfer_bytes: dict[str, int]  # by direction
    nic_series: dict[str, list[float]] = field(default_factory=dict)  # node -> bytes in each second
    update_s: Sequence[float] = ()  # how long each change of weights took, from its beginning


def tokens_sha256(turns: Sequence[TurnResult]) -> str:
    """Of all generated tokens, in (agent, round) order."""
    digest = hashlib.sha256()
    for turn in sorted(turns, key=lambda t: (t.agent, t.round)):
        digest.update(np.asarray(turn.token_ids, dtype="<i4").tobytes())
    return digest.hexdigest()


def as_json(run: RunResult) -> dict[str, Any]:
    """The entry of one system in the rollout's JSON."""
    records = [turn.record for turn in run.turns]
    prompt = sum(record.num_prompt_tokens for record in records)
    hit = sum(record.num_hit_tokens for record in records)
    generated = sum(len(turn.token_ids) for turn in run.turns)
    return {
        "jct_s": run.jct_s,
        "requests": len(records),
        "prompt_tokens": prompt,
        "hit_tokens": hit,
        "generated_tokens": generated,
        "storage_read_bytes": run.storage_read_bytes,
        "kv_transfer_bytes": run.kv_transfer_bytes,
        "snic_max_avg": snic_max_avg(run.nic_series),
        "ttft_s": summarize(record.ttft_s for record in records),
        "ttst_s": summarize(record.ttst_s for record in records),
        "tpot_s": summarize(record.tpot_s for record in records),
        "phases_s": phase_summary([record.phases_s for record in records]),
        "tokens_sha256": tokens_sha256(run.turns),
        "prompt_tokens_per_s": prompt / run.jct_s,
        "generated_tokens_per_s": generated / run.jct_s,
        "hit_rate": hit / prompt if prompt else 0.0,
        "recomputed_blocks": sum(record.num_recomputed_blocks for record in records),
        "weight_updates": len(run.update_s),
        "update_s": list(run.update_s),
        "retries": sum(record.num_retries for record in records),
        "nic_series": {node: [round(value) for value in windows] for node, windows in run.nic_series.items()},
        "path_shares": path_shares(records),
        "side_read_bytes": _side_bytes(records),
    }


def path_shares(records: Sequence[RequestRecord]) -> dict[str, float]:
    """Share of requests by the path that their hit blocks took; "none": nothing to read."""
    counts = Counter(record.path for record in records)
    return {path: counts[path] / len(records) for path in ("none", "prefill", "decode", "split") if counts[path]}


def _side_bytes(records: Sequence[RequestRecord]) -> dict[str, int]:
    return {side: sum(record.storage_read_bytes.get(side, 0) for record in records) for side in ("prefill", "decode")}
