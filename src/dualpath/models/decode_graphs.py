"""Decode steps captured in CUDA graphs, one for each of a few batch sizes: a step costs one launch instead of hundreds.

What a graph reads lies in tensors that never move; a step copies its batch into the first rows of the next larger size.
The rows behind decode the first token of nobody's context, in a block that nobody has. Only families whose forward
never looks at a value on the host can be captured: no experts, no indexer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from dualpath.models.seam import DecodeBatch, GraphLimits

log = logging.getLogger(__name__)

GRAPH_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_WARM_UPS = 2  # libraries and kernels set themselves up, which cannot be captured

Forward = Callable[[DecodeBatch, torch.Tensor], torch.Tensor]


class Captured(NamedTuple):
    replay: Callable[[], None]
    logits: torch.Tensor  # written by every replay


Capture = Callable[[Callable[[], torch.Tensor]], Captured]


@dataclass(frozen=True, slots=True)
class _Step:
    """One size's inputs, and what they lead to."""

    inputs: DecodeBatch
    captured: Captured


class DecodeGraphs:
    """One engine's: its pool's address is in the graphs. Model thread."""

    def __init__(self, forward: Forward, pool: torch.Tensor, limits: GraphLimits, capture: Capture) -> None:
        self._pool, self._limits = pool, limits
        self._steps: dict[int, _Step] = {}
        sizes = [size for size in BATCH_SIZES if size < limits.max_requests] + [limits.max_requests]
        for size in reversed(sizes):  # the largest first: the others' memory fits into its
            inputs = self._inputs(size)
            self._steps[size] = _Step(inputs, capture(lambda b=inputs: forward(b, pool)))  # type: ignore[misc]

    def run(self, batch: DecodeBatch, pool: torch.Tensor) -> torch.Tensor | None:
        """Logits ``[B, vocab]``, which the next step overwrites; None for a batch that no graph takes."""
        count, width = batch.block_table.shape
        size = min((size for size in self._steps if size >= count), default=None)
        if size is None or width > self._limits.max_blocks or pool.data_ptr() != self._pool.data_ptr():
            return None
        step = self._steps[size]
        inputs = step.inputs
        inputs.token_ids[:count].copy_(batch.token_ids)
        inputs.positions[:count].copy_(batch.positions)
        inputs.block_table[:count, :width].copy_(batch.block_table)  # what is left behind them is not looked at
        if count < size:
            self._empty(inputs, count)
        step.captured.replay()
        return step.captured.logits[:count]

    def _inputs(self, size: int) -> DecodeBatch:
        device, limits = self._pool.device, self._limits
        inputs = DecodeBatch(
            token_ids=torch.zeros(size, dtype=torch.int64, device=device),
            positions=torch.zeros(size, dtype=torch.int64, device=device),
            block_table=torch.zeros((size, limits.max_blocks), dtype=torch.int32, device=device),
            block_lists=[],  # of host-side fast paths
            position_list=[limits.max_blocks * limits.block_tokens - 1] * size,  # the longest that it must do for
        )
        self._empty(inputs, 0)
        return inputs

    def _empty(self, inputs: DecodeBatch, first: int) -> None:
        inputs.token_ids[first:].zero_()
        inputs.positions[first:].zero_()
        inputs.block_table[first:].fill_(self._limits.scratch_block)


def cuda_capture(device: torch.device) -> Capture:
    """Captures on a stream of its own; all of a model's graphs share one pool of memory. Raises RuntimeError."""
    stream, memory = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def capture(forward: Callable[[], torch.Tensor]) -> Captured:
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                forward()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads' calls, such as copiers', are none of the capture's business.
        with torch.cuda.graph(graph, pool=memory, stream=stream, capture_error_mode="thread_local"):
            logits = forward()
        return Captured(graph.replay, logits)

    return capture


def try_capture(
    family: str, forward: Forward, pool: torch.Tensor, limits: GraphLimits, capture: Capture
) -> DecodeGraphs | None:
    """None, with a warning, where a family cannot be captured, or this forward was refused. OutOfMemoryError passes."""
    if family not in GRAPH_FAMILIES:
        log.warning("decode is not captured in CUDA graphs: %s looks at values on the host", family)
        return None
    try:
        return DecodeGraphs(forward, pool, limits, capture)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        log.warning("decode is not captured in CUDA graphs: %s", " ".join(str(error).split())[:300])
        return None


def capture_for(device: torch.device) -> Any:
    """What captures on a device; None: nothing does."""
    return cuda_capture(device) if device.type == "cuda" else None
