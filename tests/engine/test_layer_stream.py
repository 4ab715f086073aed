"""Layer streaming when transfers go wrong: nothing is computed without its history or loaded into given-up memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from dualpath.core.errors import TransferError
from dualpath.core.ids import PeerId
from dualpath.core.runtime import SystemRuntime
from dualpath.engine.layer_stream import WorkspaceStream
from dualpath.engine.prefill_batch import Flow
from dualpath.traffic.contract import Transfer, Units

NUM_LAYERS = 4


class Traffic:
    """Transfers end when the test says so."""

    def __init__(self, on_load: Callable[[int], None] = lambda number: None) -> None:
        self.loads: list[Transfer[int]] = []
        self.pushes: list[Transfer[int]] = []
        self._on_load = on_load

    def staging_units(self, slots: Units, layer: int) -> Units:
        return slots

    def copy(self, *_: Any) -> Transfer[int]:
        self._on_load(len(self.loads))
        self.loads.append(Transfer())
        return self.loads[-1]

    def push(self, *_: Any) -> Transfer[int]:
        self.pushes.append(Transfer())
        return self.pushes[-1]


def end(transfer: Transfer[int]) -> None:
    transfer.quiescent.set_result(None)
    transfer.settled.set_result(None)
    transfer.future.set_result(1)


def stream(traffic: Traffic, deadline_s: float) -> WorkspaceStream:
    """One block comes in and one goes out in every layer; the first layer has been computed."""
    pair = np.zeros(1, dtype=np.int32)
    flows = [Flow(None, pair, pair)], [Flow(PeerId("decode-0.1"), pair, pair)]
    workspace = torch.zeros((2, 1, 4, 8), dtype=torch.uint8)
    built = WorkspaceStream(traffic, workspace, 0, NUM_LAYERS, *flows, SystemRuntime(), deadline_s)  # type: ignore[arg-type]
    assert len(traffic.loads) == 2, "the second layer loads beside the first one's compute"
    for load in traffic.loads:
        end(load)
    built.acquire(0)
    built.release(0)
    return built


def test_a_layer_whose_history_could_not_be_asked_for_is_not_computed() -> None:
    def refuse_the_third(number: int) -> None:
        if number == 2:
            raise ValueError("no such slot")

    traffic = Traffic(refuse_the_third)
    running = stream(traffic, 0.05)
    end(traffic.pushes[0])
    running.acquire(1)
    running.release(1)
    with pytest.raises(TransferError, match="layer 2"):
        running.acquire(2)


def test_a_load_that_does_not_end_is_a_failed_transfer() -> None:
    running = stream(traffic := Traffic(), 0.02)
    assert len(traffic.loads) == 2
    end(traffic.pushes[0])
    assert len(traffic.loads) == 3, "the third begins when the first one's memory is free, before anybody asks for it"
    running.acquire(1)
    running.release(1)
    with pytest.raises(TransferError, match="did not end"):
        running.acquire(2)


def test_a_stream_that_is_given_up_knows_the_load_that_begins_just_then() -> None:
    is_loading, go_on = threading.Event(), threading.Event()

    def be_slow(number: int) -> None:
        if number == 2:
            is_loading.set()
            assert go_on.wait(10)

    traffic = Traffic(be_slow)
    running = stream(traffic, 5.0)
    with ThreadPoolExecutor(2) as threads:
        threads.submit(end, traffic.pushes[0])  # the workspace is free: layer 2 begins, on the traffic thread
        assert is_loading.wait(10)
        is_quiet = threads.submit(running.abandon, 0.05)
        go_on.set()
        assert not is_quiet.result(10), "layer 2 is coming into the workspace"
    end(traffic.loads[2])
    assert running.abandon(0.05)


def test_nothing_is_loaded_where_a_push_that_is_late_may_still_read() -> None:
    """What it would carry away then is another layer's: a wrong history for whoever computes the request again."""
    running = stream(traffic := Traffic(), 0.02)
    traffic.pushes[0].future.set_exception(TransferError("late"))  # and it goes on: it is not quiescent
    running.acquire(1)
    running.release(1)
    end(traffic.pushes[1])
    with pytest.raises(TransferError, match="late"):
        running.acquire(2)
    assert len(traffic.loads) == 2
    assert not running.abandon(0.02), "the push may still read"
