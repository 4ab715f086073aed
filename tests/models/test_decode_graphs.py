"""Decode by captured steps: what a graph reads never moves, and rows that pad a batch touch nobody's memory.

A captured step is traced to a program of plain tensor operations here, so that, as on CUDA, whatever the host computed
stays as it was during the capture; Python runs no more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.models.little_engine import LittleEngine
from torch.fx.experimental.proxy_tensor import make_fx

from dualpath.models.decode_graphs import Captured
from dualpath.models.hf_model import HfModel
from dualpath.models.kernels.plain import PlainKernels
from dualpath.models.load import load_model
from dualpath.models.seam import GraphLimits

BLOCK_TOKENS = 16


class Tracer:
    """A ``Capture`` on CPUs."""

    def __init__(self) -> None:
        self.num_captures = self.num_replays = 0

    def __call__(self, forward: Callable[[], torch.Tensor]) -> Captured:
        self.num_captures += 1
        nothing = torch.zeros(1)  # a program needs an argument
        program = make_fx(lambda _: forward())(nothing)
        logits = program(nothing).clone()

        def replay() -> None:
            self.num_replays += 1
            logits.copy_(program(nothing))

        return Captured(replay, logits)


@pytest.fixture(scope="module")
def model(model_dir_of: Callable[[str], Path]) -> HfModel:
    loaded = load_model(model_dir_of("qwen3"), dtype="float32", fingerprint="00")
    return HfModel(loaded.spec, loaded._model, loaded._layout, PlainKernels())


def _filled(model: HfModel, lengths: list[int]) -> tuple[LittleEngine, torch.Tensor, list[list[int]]]:
    """A pool with random rows for each context and one block behind that is nobody's."""
    engine = LittleEngine(model, BLOCK_TOKENS)
    torch.manual_seed(3)
    rows = [
        torch.randn(model.spec.num_layers, length, model.spec.bytes_per_token_layer // 4).view(torch.uint8)
        for length in lengths
    ]
    pool, blocks = engine.fill_pool(rows, 2)
    scratch = torch.full_like(pool[:1], 0)
    return engine, torch.cat((pool, scratch)), blocks


def _limits(pool: torch.Tensor) -> GraphLimits:
    return GraphLimits(max_requests=2, max_blocks=8, block_tokens=BLOCK_TOKENS, scratch_block=len(pool) - 1)


@dataclass
class Case:
    """Captured for one and for two requests, over a pool with contexts of these lengths."""

    engine: LittleEngine
    pool: torch.Tensor
    blocks: list[list[int]]
    own: HfModel
    tracer: Tracer


LENGTHS = [5, 33, 100, 150]


@pytest.fixture(scope="module")
def captured(model: HfModel) -> Case:
    engine, pool, blocks = _filled(model, LENGTHS)
    own, tracer, untouched = model.share(), Tracer(), pool.clone()
    assert own.capture_decode(pool, _limits(pool), tracer)
    assert tracer.num_captures == 2
    assert torch.equal(pool[:-1], untouched[:-1]), "captures write to nobody's block"
    return Case(engine, pool, blocks, own, tracer)


def test_steps_of_any_batch_are_replayed_to_the_same_logits(model: HfModel, captured: Case) -> None:
    pool, plain_pool, before = captured.pool, captured.pool.clone(), captured.tracer.num_replays
    for step in range(2):
        for chosen in ([0], [2, 1], [1]):
            batch = captured.engine.batch(
                [40 + i for i in chosen], [LENGTHS[i] + step for i in chosen], [captured.blocks[i] for i in chosen]
            )
            ours, right = captured.own.decode(batch, pool), model.decode(batch, plain_pool)
            torch.testing.assert_close(ours, right, atol=1e-4, rtol=1e-4)
            written = (part[:-1].view(torch.float32) for part in (pool, plain_pool))
            torch.testing.assert_close(*written, equal_nan=True, atol=1e-5, rtol=1e-5)
    assert captured.tracer.num_replays == before + 6


def test_what_no_graph_takes_runs_as_before(model: HfModel, captured: Case) -> None:
    engine, blocks, before = captured.engine, captured.blocks, captured.tracer.num_replays
    many = engine.batch([40] * 3, LENGTHS[:3], blocks[:3])
    long = engine.batch([40], [LENGTHS[3]], [blocks[3]])
    short = engine.batch([40], [LENGTHS[0]], [blocks[0]])
    for batch, memory in ((many, captured.pool), (long, captured.pool), (short, captured.pool.clone())):
        torch.testing.assert_close(captured.own.decode(batch, memory), model.decode(batch, memory))
    assert captured.tracer.num_replays == before, "too many, too long, and another pool"
    assert captured.own.share()._graphs is None, "who shares the weights has graphs of its own"


def test_families_that_look_at_values_and_refusals_decode_as_before(
    model_dir_of: Callable[[str], Path], model: HfModel, caplog: pytest.LogCaptureFixture
) -> None:
    _, pool, _ = _filled(model, [5])
    experts = load_model(model_dir_of("mixtral"), dtype="float32", fingerprint="00")
    with caplog.at_level(logging.WARNING):
        assert not experts.capture_decode(pool, _limits(pool), Tracer())
    assert "mixtral looks at values on the host" in caplog.text

    def refuse(_: Callable[[], torch.Tensor]) -> Captured:
        raise RuntimeError("operation not permitted when stream is capturing")

    def run_out(_: Callable[[], torch.Tensor]) -> Captured:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with caplog.at_level(logging.WARNING):
        assert not model.share().capture_decode(pool, _limits(pool), refuse)
    assert "not permitted" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        model.share().capture_decode(pool, _limits(pool), run_out)
    assert not model.share().capture_decode(pool, _limits(pool)), "a CPU has no graphs"
