"""Time of a decode step of a full batch: any text, text that fits a JSON schema, text with penalties.

``python benchmarks/constrained.py --model DIR --batch 8``: the step as a decode engine does it, masks beside the
forward, one of each kind in turn in one run. Each is compared with the step of any text next to it. On a machine that
others use too look at the CPU time of the process: it has the masks' in it, although they are made beside the forward.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from dualpath.core.ids import RequestId
from dualpath.core.request import Request, SamplingParams
from dualpath.core.runtime import SystemRuntime
from dualpath.engine.output_states import OutputStates
from dualpath.engine.sampling import SampleJob, sample
from dualpath.grammar.lark import Rules, json_value
from dualpath.grammar.vocabulary import grammars_of
from dualpath.models.load import load_model
from dualpath.models.seam import DecodeBatch, Model

BLOCK_TOKENS = 64
SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "path": {"type": "string", "maxLength": 60},
            "line": {"type": "integer"},
            "kind": {"enum": ["error", "warning", "note"]},
            "words": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
        },
        "required": ["path", "line", "kind", "words"],
        "additionalProperties": False,
    },
}
OBJECTS: dict[str, Any] = {"type": "array", "minItems": 1000, "items": {"type": "object"}}
KINDS: dict[str, dict[str, Any]] = {
    "any text": {},
    "JSON schema": {"grammar": Rules().grammar(json_value(SCHEMA, is_strict=True))},
    "JSON objects": {"grammar": Rules().grammar(json_value(OBJECTS, is_strict=True))},
    "penalties": {"repetition_penalty": 1.1, "frequency_penalty": 0.2},
}


class Batch:
    """Requests of one kind, all at the same length. Their history is no KV of anything: it costs what KV costs."""

    def __init__(self, model: Model, states: OutputStates, kind: dict[str, Any], args: argparse.Namespace) -> None:
        self._model, self._states = model, states
        num_blocks = -(-(args.context + args.steps + 2) // BLOCK_TOKENS)
        spec = model.spec
        shape = (args.batch * num_blocks, spec.num_layers, BLOCK_TOKENS, spec.bytes_per_token_layer)
        self._pool = torch.zeros(shape, dtype=torch.uint8, device=model.device)
        self._blocks = [list(range(row * num_blocks, (row + 1) * num_blocks)) for row in range(args.batch)]
        self._params = [SamplingParams(args.steps + 9, temperature=0.8, seed=row, **kind) for row in range(args.batch)]
        prompt = tuple(40 + i * 7 % 60 for i in range(args.context))
        self._requests = [Request(RequestId("r"), prompt, params) for params in self._params]
        self._length, self._last = args.context, [0] * args.batch

    async def open(self) -> None:
        self._outputs = [await self._states.open(request) for request in self._requests]

    def step(self) -> tuple[float, float]:
        """Wall and CPU time, s."""
        start_s = time.perf_counter(), time.process_time()
        device = self._model.device
        masks = self._states.advance(self._outputs)
        positions = [self._length] * len(self._last)
        batch = DecodeBatch(
            torch.tensor(self._last, dtype=torch.int64, device=device),
            torch.tensor(positions, dtype=torch.int64, device=device),
            torch.tensor(self._blocks, dtype=torch.int32, device=device),
            self._blocks,
            positions,
        )
        logits = self._model.decode(batch, self._pool)
        self._states.wait(masks)
        jobs = [SampleJob(p, self._length + 1, out) for p, out in zip(self._params, self._outputs, strict=True)]
        self._last = [event.token_id for event in sample(logits, jobs)]
        end_s = time.perf_counter(), time.process_time()
        for output, token_id in zip(self._outputs, self._last, strict=True):
            if output is not None:
                output.take(token_id)
                assert output.error is None, output.error
        self._length += 1
        return end_s[0] - start_s[0], end_s[1] - start_s[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(args.model, dtype=args.dtype, device=args.device)
    spec = model.spec
    grammars = grammars_of(args.model, spec.vocab_size, spec.eos_token_ids)
    states = OutputStates(grammars, spec.eos_token_ids, SystemRuntime(), "masks")
    batches = {name: Batch(model, states, kind, args) for name, kind in KINDS.items()}
    for batch in batches.values():
        asyncio.run(batch.open())
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in KINDS}
    for number in range(args.steps):
        for name, batch in batches.items():
            took_s = batch.step()
            if number > 1:  # the first are to get warm
                times[name].append(took_s)
    states.close(10.0)
    out = {}
    for name, own in times.items():
        wall_ms, cpu_ms = (statistics.median(column) * 1e3 for column in zip(*own, strict=True))
        pairs = list(zip(own, times["any text"], strict=True))
        wall, cpu = (statistics.median(mine[i] / plain[i] for mine, plain in pairs) for i in (0, 1))
        out[name] = {"step_ms": wall_ms, "step_ratio": wall, "cpu_ms": cpu_ms, "cpu_ratio": cpu}
        print(f"{name:12} {wall_ms:8.2f} ms a step ({wall:.3f} of any text), {cpu_ms:8.2f} ms of CPU ({cpu:.3f})")
    if args.json:
        args.json.write_text(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
