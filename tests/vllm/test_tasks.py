"""When a node's request may be let go: nobody looks at it, and nothing of it moves, here or there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dualpath.core.errors import EngineLostError
from dualpath.core.ids import RequestId
from dualpath.traffic.contract import Transfer
from dualpath.vllm.worker.tasks import PrefillTask, Tasks

RID = RequestId("r")


def _task() -> PrefillTask:
    order: Any = None
    return PrefillTask(request_id=RID, order=order, slots={}, digests=np.zeros((1, 1), dtype=np.uint64))


def test_a_task_is_at_rest_when_its_pushes_are_there_too() -> None:
    tasks, task, push = Tasks[PrefillTask](), _task(), Transfer[int]()
    tasks.add(task)
    task.transfers.append(push)
    tasks.close(RID)
    assert not task.is_quiet
    push.quiescent.set_result(None)
    assert task.is_quiet, "our memory is at rest"
    assert not task.is_at_rest, "bytes may still arrive over there"
    push.settled.set_result(None)
    assert task.is_at_rest


def test_whoever_has_pinned_a_task_keeps_it() -> None:
    tasks, task = Tasks[PrefillTask](), _task()
    tasks.add(task)
    with tasks.pinned(RID) as pinned:
        assert pinned is task
        tasks.pin_again(task)
        tasks.close(RID)
        tasks.close(RID)
        assert not task.is_at_rest
        assert not task.is_quiet
    assert not task.unpinned.done()
    tasks.unpin(task)
    assert task.unpinned.done()
    assert task.is_at_rest
    with tasks.pinned(RID) as gone:
        assert gone is None
    tasks.forget(RID)
    assert len(tasks) == 0


def test_a_task_without_pins_is_unpinned_when_it_closes() -> None:
    tasks, task = Tasks[PrefillTask](), _task()
    tasks.add(task)
    assert tasks.close(RID) is task
    assert task.unpinned.done()


def test_a_request_is_there_once() -> None:
    tasks = Tasks[PrefillTask]()
    tasks.add(_task())
    with pytest.raises(EngineLostError, match="here already"):
        tasks.add(_task())


def test_the_first_end_counts() -> None:
    task = _task()
    task.end(EngineLostError("first"))
    task.end()
    with pytest.raises(EngineLostError, match="first"):
        task.done.result(0)
