"""Step 7: a short prompt behind a long history: streamed by each path, against a history that is there already."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from dualpath.cluster.measure import ZeroStream
from dualpath.core.ids import RequestId
from dualpath.core.request import Request, SamplingParams
from dualpath.models.load import load_model
from dualpath.models.seam import PrefillItem
from dualpath.scheduler.service import Service
from dualpath.validation.gpu.result import Findings
from dualpath.validation.gpu.setting import Setting

PATHS = ("prefill", "decode", "split")
LIMIT = 1.1  # of resident
_REPEATS = 2


def run(setting: Setting, found: Findings) -> None:
    resident_s, history_bytes = _resident(setting)
    title = f"{setting.scale.new_tokens} tokens behind {setting.scale.history_tokens}"
    table = found.table(title, "history", "ms of the forward", "of resident", "ms waited")
    table.rows.append(["resident", f"{resident_s * 1e3:.1f}", "1.00", "0.0"])
    bound_s = history_bytes / setting.rates.to_device if setting.rates.to_device else 0.0
    for path in PATHS:
        forward_s, wait_s = asyncio.run(_streamed(setting, path))
        ratio = forward_s / resident_s
        table.rows.append([path, f"{forward_s * 1e3:.1f}", f"{ratio:.2f}", f"{wait_s * 1e3:.1f}"])
        passed = None
        if setting.device.type == "cuda":
            passed = ratio <= LIMIT or forward_s <= LIMIT * bound_s
        found.verdict(f"streamed by {path}, of resident", f"{ratio:.2f}", passed)
    found.notes.append(
        f"the history is {history_bytes / 1e9:.2f} GB; to copy it takes {bound_s * 1e3:.1f} ms at this box's rate"
    )


def _resident(setting: Setting) -> tuple[float, int]:
    """(seconds of a forward whose history lies in device memory, bytes of that)"""
    model = load_model(setting.timed_model_dir(), device=setting.device_name, fingerprint="00")
    spec, scale = model.spec, setting.scale
    rows = scale.history_tokens + scale.new_tokens
    shape = (2, rows, spec.bytes_per_token_layer)
    stream = ZeroStream(torch.zeros(shape, dtype=torch.uint8, device=setting.device))
    item = PrefillItem([1 + i % 90 for i in range(scale.new_tokens)], scale.history_tokens, 0)
    time_s = setting.time_s(lambda: model.prefill([item], stream), _REPEATS)
    return time_s, scale.history_tokens * spec.bytes_per_token_layer * spec.num_layers


async def _streamed(setting: Setting, path: str) -> tuple[float, float]:
    """(fastest forward over a stored history, how long it waited for it), from the trace that stays in ``out``."""
    scale, trace = setting.scale, setting.out / f"trace-{path}.json"
    draw = random.Random(3)
    history = [draw.randrange(1000) % 90 + 32 for _ in range(scale.history_tokens)]
    context = scale.history_tokens + scale.new_tokens + 64
    async with setting.cluster(
        setting.timed_model_dir(), scale.dtype, context_tokens=context, path=path, trace_out=trace
    ) as cluster:
        await _ask(cluster.service, history)
        for _ in range(_REPEATS):
            await _ask(cluster.service, history + [draw.randrange(32, 122) for _ in range(scale.new_tokens)])
    forwards = _forwards(trace)[-_REPEATS:]
    return min(forwards)


async def _ask(service: Service, prompt: Sequence[int]) -> None:
    sampling = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
    request = Request(RequestId(f"check-{random.getrandbits(40):x}"), tuple(prompt), sampling)
    async for _ in service.generate(request):
        pass


def _forwards(trace: Path) -> list[tuple[float, float]]:
    """(seconds, seconds waited) of every prefill forward, in order."""
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    found = [event for event in events if event.get("name") == "forward" and event.get("ph") == "X"]
    return [(e["dur"] / 1e6, float(e.get("args", {}).get("wait_s", 0.0))) for e in sorted(found, key=lambda e: e["ts"])]
