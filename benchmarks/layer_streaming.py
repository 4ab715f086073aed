"""Does layer streaming hide behind compute? One prefill of few new tokens over a long history, in turns.

resident: the same forward with all history already in device memory. transformers: its own forward with a DynamicCache.
prefill / decode / split: the prefill engine's forward with history streamed from the prefill buffer, from the decode
buffer over UCX, from both; KV verified end to end ("all") and on storage alone ("storage"). Limit: 1.0 of resident.
CPU is the process's, for the whole request: both engines, read, forward, push, copy to the decode engine's device.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from dualpath.cluster.embedded import EmbeddedCluster
from dualpath.config import ClusterConfig, MemoryConfig, ModelConfig, ObserveConfig, ServeConfig, StoreConfig
from dualpath.core.ids import RequestId
from dualpath.core.request import Request, SamplingParams
from dualpath.models.init import init_model
from dualpath.models.load import load_model
from dualpath.models.seam import PrefillItem

GIB = 1024**3
PATHS = ("prefill", "decode", "split")


class ResidentStream:
    """Every layer has its own workspace, filled before the clock starts."""

    def __init__(self, num_layers: int, rows: int, row_bytes: int) -> None:
        self._layers = torch.zeros(num_layers, rows, row_bytes, dtype=torch.uint8)

    def acquire(self, layer: int) -> torch.Tensor:
        return self._layers[layer]

    def release(self, layer: int) -> None:
        pass


def time_s(run) -> float:  # type: ignore[no-untyped-def]
    start_s = time.perf_counter()
    run()
    return time.perf_counter() - start_s


async def engine_forward_s(cluster: EmbeddedCluster, prompt: list[int], number: int) -> tuple[float, float]:
    """(duration of the engine's forward for the prompt, from its own trace; CPU time of the request)"""
    cpu_s = time.process_time()
    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
    async for _ in cluster.service.generate(Request(RequestId(f"r{number}"), tuple(prompt), params)):
        pass
    assert cluster.trace is not None
    forward_s = next(e["dur"] for e in reversed(cluster.trace._events) if e["name"] == "forward") * 1e-6
    return forward_s, time.process_time() - cpu_s


Times = dict[str, list[float]]


async def measure(
    model_dir: Path, paths: Sequence[str], cached: int, new: int, rounds: int, threads: int
) -> tuple[Times, Times]:
    """(forwards, CPU)"""
    times: Times = {"resident": [], "transformers": []}
    cpu: Times = {}
    clusters = {}
    with tempfile.TemporaryDirectory() as store:
        for path, verify in itertools.product(paths, ("storage", "all")):
            config = ServeConfig(
                model=ModelConfig(dir=model_dir, device="cpu"),
                store=StoreConfig(url=f"file://{store}"),
                cluster=ClusterConfig(prefill=1, decode=1, path=path, threads_per_engine=threads),
                memory=MemoryConfig(
                    max_context_tokens=cached + new + 64, decode_kv_tokens=2 * (cached + new), verify=verify
                ),
                observe=ObserveConfig(trace_out=Path(store) / "trace.json"),
            )
            name = f"{path}, {verify}"
            clusters[name], times[name], cpu[name] = EmbeddedCluster(config, progress=lambda _: None), [], []
            await clusters[name].start()
            torch.manual_seed(0)
            history = torch.randint(32, 127, (cached,)).tolist()
            await engine_forward_s(clusters[name], [*history, 32], 0)  # stores the history
        model = load_model(model_dir)
        torch.set_num_threads(threads)
        spec = model.spec
        resident = ResidentStream(spec.num_layers, cached + new, spec.bytes_per_token_layer)
        hf = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        base = DynamicCache(config=hf.config)
        with torch.inference_mode():
            hf(torch.tensor([history]), past_key_values=base, logits_to_keep=1)
        for number in range(1, rounds + 1):
            tail = torch.randint(32, 127, (new,)).tolist()
            times["resident"].append(time_s(lambda tail=tail: model.prefill([PrefillItem(tail, cached, 0)], resident)))
            with torch.inference_mode():
                ids = torch.tensor([tail])
                times["transformers"].append(time_s(lambda ids=ids: hf(ids, past_key_values=base, logits_to_keep=1)))
            base.crop(-new)
            for name, cluster in clusters.items():
                forward_s, cpu_s = await engine_forward_s(cluster, history + tail, number)
                times[name].append(forward_s)
                cpu[name].append(cpu_s)
        for cluster in clusters.values():
            await cluster.close(5.0)
    return times, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cached", type=int, default=4096)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--paths", nargs="+", default=PATHS, choices=PATHS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model_dir = init_model("llama", Path(scratch) / "model", preset="demo")
        paths, rounds, threads = arguments.paths, arguments.rounds, arguments.threads
        times, cpu = asyncio.run(measure(model_dir, paths, arguments.cached, arguments.new, rounds, threads))
    best = {name: statistics.median(values) for name, values in times.items()}
    print(f"prefill of {arguments.new} new over {arguments.cached} cached tokens, median of {rounds}:")
    for name, median_s in best.items():
        against = (
            f"{median_s / best['resident']:.2f} of resident, {median_s / best['transformers']:.2f} of transformers"
        )
        print(f"  {name:<17}{median_s * 1e3:7.1f} ms   {against}")
    for path in paths:
        forward, request = (_ratio(values, path) for values in (times, cpu))
        off_s = statistics.median(cpu[f"{path}, storage"])
        print(
            f"  {path}: all / storage: forward {forward:.3f}, CPU of the request {request:.3f} of {off_s * 1e3:.0f} ms"
        )


def _ratio(values: Times, path: str) -> float:
    """Verified end to end over storage alone, turn by turn."""
    turns = zip(values[f"{path}, all"], values[f"{path}, storage"], strict=True)
    return statistics.median(on / off for on, off in turns)


if __name__ == "__main__":
    main()
