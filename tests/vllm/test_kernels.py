"""On a GPU a push begins when the kernels that made its layer have ended; compute goes on. Fake events."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.vllm.nodes import settings

from dualpath.core.runtime import SystemRuntime
from dualpath.vllm.messages import Load
from dualpath.vllm.worker.parts import NodeParts


class Kernels:
    """What a device has still to compute."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.recorded: list[object] = []
        self.num_synchronized = 0


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    it = Kernels()

    class Event:
        def record(self, stream: object) -> None:
            it.recorded.append(stream)

        def synchronize(self) -> None:
            assert it.ended.wait(10)

    def synchronize() -> None:
        it.num_synchronized += 1

    stream = SimpleNamespace(synchronize=synchronize)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return it


@pytest.fixture
def parts(tmp_path: Any) -> Iterator[NodeParts]:
    runtime, loop = SystemRuntime(), asyncio.new_event_loop()
    kv = SimpleNamespace(region=SimpleNamespace(storage=SimpleNamespace(device=torch.device("cuda", 0))))
    nobody: Any = None
    worker = runtime.worker("kernels")
    yield NodeParts(settings("prefill", tmp_path), nobody, kv, nobody, None, runtime, loop, worker, nobody)  # type: ignore[arg-type]
    worker.close(10)
    loop.close()


def test_work_waits_for_the_kernels_that_were_launched_before_it(parts: NodeParts, kernels: Kernels) -> None:
    done: list[str] = []
    parts.when_computed(lambda: done.append("layer 0"), lambda error: done.append(repr(error)))
    parts.when_computed(lambda: done.append("layer 1"), lambda error: done.append(repr(error)))
    assert len(kernels.recorded) == 2
    assert done == [], "the caller launches the next layer's kernels"
    kernels.ended.set()
    parts.wait_for_kernels()
    assert done == ["layer 0", "None", "layer 1", "None"]


def test_an_error_goes_to_whoever_asked(parts: NodeParts, kernels: Kernels) -> None:
    kernels.ended.set()
    errors: list[Exception | None] = []
    parts.when_computed(lambda: parts.settings.nothing, errors.append)  # type: ignore[attr-defined]
    parts.wait_for_kernels()
    assert isinstance(errors[0], AttributeError)


def test_a_node_that_closes_refuses(parts: NodeParts, kernels: Kernels) -> None:
    parts.after_kernels.close(10)
    errors: list[Exception | None] = []
    parts.when_computed(lambda: None, errors.append)
    assert isinstance(errors[0], RuntimeError)


def test_loads_begin_when_vllm_has_zeroed_their_blocks(parts: NodeParts, kernels: Kernels) -> None:
    parts.wait_for_zeroing([])
    assert kernels.num_synchronized == 0
    parts.wait_for_zeroing([Load("r", "x", 0, (1,))])  # type: ignore[arg-type]
    assert kernels.num_synchronized == 1
