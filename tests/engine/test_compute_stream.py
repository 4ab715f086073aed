"""On CUDA nothing outside of the device touches memory before the kernels that use it have ended; events are fakes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine.test_layer_stream import NUM_LAYERS, Traffic, end

from dualpath.core.ids import PeerId
from dualpath.core.runtime import SystemRuntime
from dualpath.engine.layer_stream import WorkspaceStream
from dualpath.engine.prefill_batch import Flow
from dualpath.models.compute_stream import CudaStream, HostStream, compute_stream


class FakeDevice:
    """A device whose kernels end when the test says so: each event waits for its number of ended layers."""

    def __init__(self) -> None:
        self.events: list[threading.Event] = []
        self.num_drains = 0

    def synchronize(self) -> None:
        self.num_drains += 1

    def event(self) -> Any:
        device, ended = self, threading.Event()

        class Event:
            def record(self, stream: object) -> None:
                assert stream is device
                device.events.append(ended)

            def synchronize(self) -> None:
                assert ended.wait(10)

        return Event()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    fake = FakeDevice()
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: fake)
    return fake


@pytest.fixture
def compute(device: FakeDevice) -> Iterator[CudaStream]:
    made = CudaStream(torch.device("cuda", 0), "prefill-0", SystemRuntime())
    yield made
    for event in device.events:
        event.set()
    made.close(5.0)


def _stream(traffic: Traffic, compute: CudaStream, deadline_s: float = 10.0) -> WorkspaceStream:
    pair = np.zeros(1, dtype=np.int32)
    flows = [Flow(None, pair, pair)], [Flow(PeerId("decode-0.1"), pair, pair)]
    workspace = torch.zeros((2, 1, 4, 8), dtype=torch.uint8)
    built = WorkspaceStream(traffic, workspace, 0, NUM_LAYERS, *flows, SystemRuntime(), deadline_s, compute=compute)  # type: ignore[arg-type]
    for load in traffic.loads:
        end(load)
    return built


def test_a_layer_is_pushed_when_its_kernels_have_ended_and_nobody_waits_for_that(
    device: FakeDevice, compute: CudaStream
) -> None:
    stream = _stream(traffic := Traffic(), compute)
    stream.acquire(0)
    stream.release(0)
    stream.acquire(1)  # the model's thread has gone on
    stream.release(1)
    assert not traffic.pushes
    assert device.num_drains == 0
    device.events[0].set()
    stream._posts[0].result(10)
    assert len(traffic.pushes) == 1
    end(traffic.pushes[0])
    assert len(traffic.loads) == 3, "layer 2 comes into the memory that layer 0 has left"
    device.events[1].set()
    stream._posts[1].result(10)


def test_what_goes_wrong_after_the_kernels_is_told_by_the_layer_that_needs_it(
    device: FakeDevice, compute: CudaStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = _stream(traffic := Traffic(), compute)
    stream.acquire(0)

    def refuse(*_: object) -> None:
        raise ValueError("no such peer")

    monkeypatch.setattr(traffic, "push", refuse)
    stream.release(0)
    device.events[0].set()
    stream.acquire(1)
    with pytest.raises(ValueError, match="no such peer"):
        stream.acquire(2)


def test_a_failed_forward_drains_its_kernels_and_begins_no_push_any_more(
    device: FakeDevice, compute: CudaStream
) -> None:
    stream = _stream(traffic := Traffic(), compute)
    stream.acquire(0)
    stream.release(0)
    assert stream.abandon(1.0)
    assert device.num_drains == 1
    device.events[0].set()
    stream._posts[0].result(10)
    assert not traffic.pushes


def test_a_cpu_has_nothing_to_wait_for() -> None:
    stream = compute_stream(torch.device("cpu"), "decode-0", SystemRuntime())
    assert isinstance(stream, HostStream)
    done: list[object] = []
    stream.after(lambda: done.append("called"), done.append)
    assert done == ["called", None]
