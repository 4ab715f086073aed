"""Time our attention against transformers' own: prefill of few new tokens on a long history, and batched decode.

For each family, in one process and interleaved (machines are noisy, ratios less so):

- prefill: transformers with the history in a DynamicCache; ours with the history already in the workspaces
  ("resident"); ours with every layer copied in from host memory by a second thread while the layer before computes;
- decode: one step of a batch, transformers with a contiguous DynamicCache; ours over a paged pool.

Random weights, no downloads: ``OMP_NUM_THREADS=2 python benchmarks/model_kernels.py --families llama,deepseek_v3``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from dualpath.models.families import SUPPORTED_FAMILIES
from dualpath.models.init import init_model
from dualpath.models.load import DTYPES, load_model
from dualpath.models.seam import DecodeBatch, Model, PrefillItem

BLOCK_TOKENS = 64


class ResidentStream:
    """The history is where it has to be: the cost of attention alone."""

    def __init__(self, workspaces: list[torch.Tensor]) -> None:
        self._workspaces = workspaces

    def acquire(self, layer: int) -> torch.Tensor:
        return self._workspaces[layer % 2]

    def release(self, layer: int) -> None:
        pass


class HostStream:
    """Copies layer l + 1 from host memory while layer l computes, into the workspace that layer l - 1 gave back."""

    def __init__(self, workspaces: list[torch.Tensor], history: torch.Tensor, thread: ThreadPoolExecutor) -> None:
        self._workspaces = workspaces
        self._history = history  # uint8 [layers, num_cached, row_bytes]
        self._thread = thread
        self._loading: dict[int, Future[None]] = {}
        for layer in range(2):
            self._load(layer)

    def acquire(self, layer: int) -> torch.Tensor:
        self._loading.pop(layer).result()
        return self._workspaces[layer % 2]

    def release(self, layer: int) -> None:
        self._load(layer + 2)

    def _load(self, layer: int) -> None:
        if layer < len(self._history):
            self._loading[layer] = self._thread.submit(self._copy, layer)

    def _copy(self, layer: int) -> None:
        self._workspaces[layer % 2][: self._history.shape[1]].copy_(self._history[layer])


def main() -> None:
    args = _parse_args()
    torch.manual_seed(0)
    print(f"{args.dtype}, {args.layers} layers, {torch.get_num_threads()} threads; ms, median of {args.repeats}")
    print(f"prefill {args.new}+{args.cached}: HF, resident, streamed; decode {args.batch}x{args.context}: HF, ours")
    for family in args.families.split(","):
        with tempfile.TemporaryDirectory() as directory:
            overrides = _long_selections(family)
            path = init_model(family, Path(directory) / family, preset="demo", layers=args.layers, **overrides)
            model = load_model(path, dtype=args.dtype, fingerprint="00", device=args.device)
            reference = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[args.dtype]).to(args.device)
            reference.eval()
            with torch.no_grad():  # inference-mode workspaces could not be written by the copy thread
                prefill = _interleaved(_prefill_runs(model, reference, args), args)
                decode = _interleaved(_decode_runs(model, reference, args), args)
        _report(family, prefill, decode)


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=",".join(SUPPORTED_FAMILIES))
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--new", type=int, default=64, help="new tokens of the prefill")
    parser.add_argument("--cached", type=int, default=4096, help="history tokens of the prefill")
    parser.add_argument("--batch", type=int, default=8, help="requests in a decode step")
    parser.add_argument("--context", type=int, default=2048, help="tokens of each request in a decode step")
    parser.add_argument("--repeats", type=int, default=9)
    return parser.parse_args()


def _long_selections(family: str) -> dict[str, Any]:
    """The released models' own window and selection sizes; the small presets shrink them for tests."""
    sizes = {"mistral": {"sliding_window": 4096}, "deepseek_v32": {"index_topk": 2048}}
    return sizes.get(family, {})


def _prefill_runs(model: Model, reference: Any, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Histories are random numbers: speed does not depend on them. Each run restores what it changed."""
    spec = model.spec
    num_rows = args.cached + -(-args.new // BLOCK_TOKENS) * BLOCK_TOKENS
    history = _random_bytes((spec.num_layers, args.cached, spec.bytes_per_token_layer), model)
    workspaces = [_random_bytes((num_rows, spec.bytes_per_token_layer), model) for _ in range(2)]
    thread = ThreadPoolExecutor(1)
    item = PrefillItem(list(range(args.new)), args.cached, 0)
    ids = torch.arange(args.new, device=model.device)[None]
    caches = _caches(reference, 1, args.cached)
    return {
        "hf": lambda: _forward(reference, ids, next(caches)),
        "resident": lambda: model.prefill([item], ResidentStream(workspaces)),
        "streamed": lambda: model.prefill([item], HostStream(workspaces, history, thread)),
    }


def _decode_runs(model: Model, reference: Any, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    spec = model.spec
    per_request = -(-(args.context + 1) // BLOCK_TOKENS)
    blocks = args.batch * per_request
    pool = _random_bytes((blocks, spec.num_layers, BLOCK_TOKENS, spec.bytes_per_token_layer), model)
    table = torch.arange(blocks, dtype=torch.int32, device=model.device).view(args.batch, per_request)
    ids = torch.arange(args.batch, device=model.device)
    batch = DecodeBatch(ids, torch.full_like(ids, args.context), table, table.tolist(), [args.context] * args.batch)
    caches = _caches(reference, args.batch, args.context)
    return {
        "hf": lambda: _forward(reference, ids[:, None], next(caches)),
        "ours": lambda: model.decode(batch, pool),
    }


def _random_bytes(shape: tuple[int, ...], model: Model) -> torch.Tensor:
    """Ordinary numbers of the KV dtype, as bytes."""
    elems = (*shape[:-1], shape[-1] // model.spec.kv_dtype.itemsize)
    return torch.randn(elems, device=model.device).to(model.spec.kv_dtype).view(torch.uint8)


def _caches(reference: Any, batch: int, tokens: int) -> Any:
    """The same filled DynamicCache again and again, cut back outside the measured time."""
    cache = DynamicCache(config=reference.config)
    for start in range(0, tokens, 1024):
        count = min(1024, tokens - start)
        reference(torch.arange(count, device=reference.device)[None].expand(batch, -1) % 200, past_key_values=cache)
    saved = [dict(vars(layer)) for layer in cache.layers]  # DynamicCache replaces tensors, never writes into them
    while True:
        for layer, attributes in zip(cache.layers, saved, strict=True):
            vars(layer).update(attributes)
        yield cache


def _forward(reference: Any, ids: torch.Tensor, cache: DynamicCache) -> Any:
    return reference(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _interleaved(runs: dict[str, Callable[[], Any]], args: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of each, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(args.repeats + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if args.device != "cpu":
                torch.cuda.synchronize()
            if repeat >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def _report(family: str, prefill: dict[str, float], decode: dict[str, float]) -> None:
    hf, resident, streamed = prefill["hf"], prefill["resident"], prefill["streamed"]
    print(
        f"{family:13s} prefill {hf:7.1f} {resident:7.1f} {streamed:7.1f}"
        f"  streamed/resident {streamed / resident:.2f}  streamed/HF {streamed / hf:.2f}"
        f"  decode {decode['hf']:7.1f} {decode['ours']:7.1f}  ours/HF {decode['ours'] / decode['hf']:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
