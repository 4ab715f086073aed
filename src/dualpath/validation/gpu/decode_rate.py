"""Step 5: a decode step against transformers' with SDPA, by batch and context, greedy and drawn; launches counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from dualpath.core.request import SamplingParams
from dualpath.engine.sampling import SampleJob, sample
from dualpath.models.load import load_model
from dualpath.models.seam import DecodeBatch, GraphLimits, Model
from dualpath.validation.gpu.result import Findings
from dualpath.validation.gpu.setting import Setting

BLOCK_TOKENS = 64
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


def run(setting: Setting, found: Findings) -> None:
    path = setting.timed_model_dir()
    ours: Any = load_model(path, device=setting.device_name, fingerprint="00")
    dtype = ours.spec.kv_dtype
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation="sdpa", local_files_only=True, trust_remote_code=False
    )
    theirs.to(setting.device).eval()
    table = found.table(
        "One step",
        "requests",
        "context",
        "ms greedy",
        "ms drawn",
        "ms captured",
        "ms transformers",
        "transformers / ours",
        "launches",
    )
    for batch in setting.scale.batches:
        for context in setting.scale.contexts:
            if _fits(setting, ours, batch * context):
                _point(setting, found, table.rows, ours, theirs, batch, context)
            else:
                found.notes.append(f"{batch} requests of {context} tokens do not fit this device")


def _point(
    setting: Setting, found: Findings, rows: list[list[Any]], ours: Model, theirs: Any, requests: int, context: int
) -> None:
    pool, batch = _inputs(ours, requests, context)
    times = {}
    for name, temperature in (("greedy", 0.0), ("drawn", 1.0)):
        jobs = [
            SampleJob(SamplingParams(max_tokens=1, temperature=temperature, seed=row), context)
            for row in range(requests)
        ]
        step = _own_step(ours, batch, pool, jobs)
        times[name] = setting.time_s(step)
        if name == "greedy":
            launches = _count_launches(setting, step)
    captured_s = _captured_s(setting, found, ours, batch, pool)
    del pool
    reference_s = setting.time_s(_their_step(theirs, requests, context, setting.device))
    ratio = reference_s / min(times["greedy"], captured_s or times["greedy"])
    steps = (times["greedy"], times["drawn"], captured_s, reference_s)
    ms = [f"{seconds * 1e3:.2f}" if seconds else "not captured" for seconds in steps]
    rows.append([requests, context, *ms, f"{ratio:.2f}", launches])
    passed = ratio >= 1.0 if setting.device.type == "cuda" else None
    found.verdict(f"decode of {requests} x {context}, transformers' time over ours", f"{ratio:.2f}", passed)


def _captured_s(setting: Setting, found: Findings, model: Any, batch: DecodeBatch, pool: torch.Tensor) -> float | None:
    """A greedy step from a CUDA graph; None where there is none."""
    requests, width = batch.block_table.shape
    own = model.share()
    if not own.capture_decode(pool, GraphLimits(requests, width, BLOCK_TOKENS, len(pool) - 1)):
        return None
    error = float((own.decode(batch, pool) - model.decode(batch, pool)).abs().max())
    found.verdict(f"a captured step of {requests} gives the same logits", f"{error:.1e}", error <= 1e-2)
    jobs = [SampleJob(SamplingParams(max_tokens=1, temperature=0.0), 1)] * requests
    return setting.time_s(_own_step(own, batch, pool, jobs))


def _own_step(model: Model, batch: DecodeBatch, pool: torch.Tensor, jobs: list[SampleJob]) -> Callable[[], object]:
    return lambda: sample(model.decode(batch, pool), jobs)


def _their_step(model: Any, requests: int, context: int, device: torch.device) -> Callable[[], object]:
    config, dtype = model.config, model.dtype
    shape = (requests, config.num_key_value_heads, context - 1, config.head_dim)
    cache = DynamicCache()
    for layer in range(config.num_hidden_layers):
        states = torch.randn(shape, dtype=dtype, device=device)
        cache.update(states, states.clone(), layer)
    ids = torch.ones((requests, 1), dtype=torch.int64, device=device)

    @torch.inference_mode()
    def step() -> object:
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.crop(-1)
        return out.logits[:, -1].argmax(-1).tolist()

    return step


def _inputs(model: Model, requests: int, context: int) -> tuple[torch.Tensor, DecodeBatch]:
    """A pool whose rows are random numbers, contexts all over it but for its last block."""
    spec, device = model.spec, model.device
    width = -(-context // BLOCK_TOKENS)
    elems = spec.bytes_per_token_layer // spec.kv_dtype.itemsize
    shape = (requests * width + 1, spec.num_layers, BLOCK_TOKENS, elems)
    pool = torch.empty(shape, dtype=spec.kv_dtype, device=device).normal_().view(torch.uint8)
    table = torch.randperm(requests * width, device=device).to(torch.int32).view(requests, width)
    return pool, DecodeBatch(
        token_ids=torch.ones(requests, dtype=torch.int64, device=device),
        positions=torch.full((requests,), context - 1, dtype=torch.int64, device=device),
        block_table=table,
        block_lists=table.tolist(),
        position_list=[context - 1] * requests,
    )


def _fits(setting: Setting, model: Model, num_tokens: int) -> bool:
    """Twice: for transformers' cache, and the copy that it makes of it in every step."""
    if setting.device.type != "cuda":
        return True
    num_bytes = num_tokens * model.spec.bytes_per_token_layer * model.spec.num_layers
    torch.cuda.empty_cache()
    return 2.2 * num_bytes < torch.cuda.mem_get_info(setting.device)[0]


def _count_launches(setting: Setting, step: Callable[[], object]) -> int:
    """Kernels, or whole graphs, that one step hands to the device."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if setting.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, acc_events=True) as profiled:
        step()
    return sum(int(event.count) for event in profiled.key_averages() if event.key in _LAUNCHES)
