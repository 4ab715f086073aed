"""The half of the connector in vLLM's worker: what a step moves, in the order of vLLM's calls. vLLM's thread only.

``begin``, ``start_load``, per layer ``wait_layer`` and ``layer_computed``, ``end_step``, ``finished``. Without loads
that the step's own forward waits for, ``start_load`` comes after the forward.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from dualpath.core.errors import EngineLostError, OtherWeightsError
from dualpath.core.ids import RequestId
from dualpath.core.weights import Weights
from dualpath.vllm.messages import Load, StepFailures, StepWork
from dualpath.vllm.worker.layer_loads import LayerLoads
from dualpath.vllm.worker.pushes import StepPush, take_back
from dualpath.vllm.worker.saves import SaveJob
from dualpath.vllm.worker.staged_decode import StagedDecode
from dualpath.vllm.worker.staged_prefill import StagedPrefill
from dualpath.vllm.worker.takes import Take
from dualpath.vllm.worker.tasks import DecodeTask, PrefillTask

LET_GO_S = 5.0  # a gateway that is gone never does
_log = logging.getLogger(__name__)


class WorkerHalf(ABC):
    """``finished`` reports exactly the requests whose blocks ``SchedulerHalf.finished`` said are not free yet."""

    _engine: StagedPrefill | StagedDecode

    def __init__(self) -> None:
        self._work = StepWork()
        self._leaving: set[str] = set()  # vLLM's requests that have ended, whose blocks something may still read

    def begin(self, work: StepWork) -> None:
        """A step of vLLM begins."""
        self._work = work

    @abstractmethod
    def preempted(self, req_ids: Iterable[str]) -> None:
        """These requests' blocks are about to be given to others."""

    @abstractmethod
    def start_load(self) -> None: ...

    @abstractmethod
    def end_step(self) -> None:
        """All layers of the step's forward, if it had one, have been computed."""

    def change_weights(self, weights: Weights, reload: Callable[[str], None]) -> None:
        """While vLLM computes nothing, and no request has blocks unless KV stays what it is. Raises where the model has
        its former weights, still or again; what was under way has come to nothing all the same."""
        model, engine = self._engine.parts.weights, self._engine
        former, digest = model.namespace(model.current).digest, model.namespace(weights).digest
        try:
            if digest != former:
                self._leave(engine.tasks.use_weights(digest))
            model.change(weights, reload)
        except Exception:
            if digest != former:
                engine.tasks.use_weights(former)
            raise
        self._changed(weights.version)

    @abstractmethod
    def _leave(self, tasks: list[Any]) -> None:
        """What these move between vLLM's KV and elsewhere is of no use any more, or must have ended on return."""

    @abstractmethod
    def _changed(self, version: str) -> None:
        """The model has other weights, or the same by another name."""

    @abstractmethod
    def _is_left(self, req_id: str) -> bool | None:
        """Whether nothing reads the request's blocks any more. None: nothing was to read them."""

    @abstractmethod
    def _forget(self, req_id: str) -> None: ...

    def finished(self, req_ids: Iterable[str]) -> set[str]:
        """Of those that have ended, now or before: whose blocks vLLM can have back."""
        self._leaving |= {req_id for req_id in req_ids if self._is_left(req_id) is not None}
        left = {req_id for req_id in self._leaving if self._is_left(req_id)}
        self._leaving -= left
        for req_id in left:
            self._forget(req_id)
        return left


class PrefillWorkerHalf(WorkerHalf):
    _engine: StagedPrefill

    def __init__(self, engine: StagedPrefill, gather: Callable[[Any], list[Any]] | None = None) -> None:
        """``gather``: of a rank among others: what each has given, once all have."""
        super().__init__()
        self._gather = gather
        self._engine, self._parts, self._tasks = engine, engine.parts, engine.tasks
        self._known: dict[str, PrefillTask | None] = {}  # whose blocks we read or write
        self._pins: list[PrefillTask] = []  # of this step
        self._loads: list[LayerLoads] = []
        self._pushes: list[StepPush] = []
        self.failures = StepFailures()  # of the last step

    def begin(self, work: StepWork) -> None:
        super().begin(work)
        self.failures = StepFailures()
        self._engine.num_steps += bool(work.loads or work.pushes)
        for xid in work.refused:
            self._give_up(self._tasks.get(xid), "vLLM was asked another prompt, or by parameters of another version")
        for push in work.pushes:
            task = self._pin(push.req_id, push.xid)
            if task is None or task.done.done():
                continue
            try:
                self._pushes.append(StepPush(self._parts, self._tasks, push, task))
            except LookupError as error:  # what comes from outside must not end vLLM's worker
                self._give_up(task, f"the order is not about this prompt: {error!r}")

    def _give_up(self, task: PrefillTask | None, reason: str) -> None:
        if task is not None:
            task.end(EngineLostError(f"{task.request_id}: {reason}"))

    def _pin(self, req_id: str, xid: RequestId) -> PrefillTask | None:
        """For this step."""
        task = self._tasks.pin(xid)
        if task is not None:
            self._pins.append(task)
        if task is not None or req_id not in self._known:
            self._known[req_id] = task
        return task

    def start_load(self) -> None:
        self._parts.wait_for_zeroing(self._work.loads)
        for load in self._work.loads:
            self._loads.append(LayerLoads(self._parts, load, self._pin(load.req_id, load.xid)))

    def wait_layer(self, layer: int) -> None:
        for loads in self._loads:
            loads.wait(layer)

    def layer_computed(self, layer: int) -> None:
        for push in self._pushes:
            push.push_layer(layer)

    def end_step(self) -> None:
        errors = []
        for loads in self._loads:
            try:
                loads.end()
            except Exception as error:  # other ranks wait to hear of it
                loads.error = error
                errors.append(error)
        failed = self._failed()
        if errors:
            raise errors[0]
        void = self._void(failed)
        for push in self._pushes:
            if push.push.req_id in void:
                take_back(self._parts, push.task)
            else:
                push.end_step()
        for task in self._pins:
            self._tasks.unpin(task)
        self._pins, self._loads, self._pushes = [], [], []

    def _failed(self) -> list[Load]:
        """Those of this step that failed, be it in another rank: what this one has computed from them is void, too."""
        names = {loads.load.req_id for loads in self._loads if loads.error is not None}
        if self._gather is not None and self._loads:
            names = set().union(*self._gather(names))
        return [loads.load for loads in self._loads if loads.load.req_id in names]

    def _void(self, failed: list[Load]) -> set[str]:
        """Requests whose pushes of this step are void: those whose load failed, and who shares blocks with them."""
        void = {load.req_id for load in failed}
        useless = {block_id for load in failed for block_id in load.block_ids}
        if not useless:
            return void
        num_before = -1
        while num_before < len(useless):
            num_before = len(useless)
            for push in self._pushes:
                if not useless.isdisjoint(push.push.block_ids):
                    void.add(push.push.req_id)
                    useless |= set(push.push.block_ids)
        self.failures = StepFailures({load.req_id for load in failed}, useless)
        for push in self._pushes:  # vLLM does not push anew, for those that share blocks, what one of them computes
            if push.push.req_id in void - self.failures.req_ids:
                self._give_up(push.task, "it shares blocks whose load has failed")
        return void

    def preempted(self, req_ids: Iterable[str]) -> None:
        for req_id in req_ids:
            task = self._known.get(req_id)
            if task is not None:
                take_back(self._parts, task)

    def _leave(self, tasks: list[PrefillTask]) -> None:
        for task in tasks:
            task.end(OtherWeightsError(f"{task.request_id}: the model has got other weights"))

    def _changed(self, version: str) -> None:
        """Its first token is named by whoever has ordered it."""

    @property
    def load_errors(self) -> set[int]:
        """vLLM's blocks that the last step's loads left without use."""
        return {b for load in self._work.loads if load.req_id in self.failures.req_ids for b in load.block_ids}

    def _is_left(self, req_id: str) -> bool | None:
        if req_id not in self._known:
            return None
        task = self._known[req_id]
        return task is None or task.is_quiet

    def _forget(self, req_id: str) -> None:
        del self._known[req_id]


class DecodeWorkerHalf(WorkerHalf):
    _engine: StagedDecode

    def __init__(self, engine: StagedDecode) -> None:
        super().__init__()
        self._engine, self._parts, self._tasks = engine, engine.parts, engine.tasks
        self._takes: list[Take] = []
        self._saves: dict[str, list[SaveJob]] = {}

    def begin(self, work: StepWork) -> None:
        super().begin(work)
        self._engine.num_steps += bool(work.loads or work.saves)
        for xid in work.unneeded:
            self._taken(xid)

    def start_load(self) -> None:
        self._parts.wait_for_zeroing(self._work.loads)
        for load in self._work.loads:
            with self._tasks.pinned(load.xid) as task:
                self._takes.append(Take(self._parts, load, task))

    def end_step(self) -> None:
        for save in self._work.saves:
            job = SaveJob(save)
            self._saves.setdefault(save.req_id, []).append(job)
            task = self._tasks.get(save.xid)
            if task is None or task.is_closed:
                job.end()
            else:
                self._parts.when_computed(partial(self._save, task, job), lambda _: None)

    def _save(self, task: DecodeTask, job: SaveJob) -> None:
        self._parts.loop.call_soon_threadsafe(self._engine.save, task, job)

    def taken(self) -> tuple[set[str], set[str]]:
        """vLLM's requests whose take has ended since the last time, and those among them where it failed."""
        over = [take for take in self._takes if take.done]
        self._takes = [take for take in self._takes if take not in over]
        for take in over:
            self._taken(take.load.xid)
        return {take.load.req_id for take in over}, {t.load.req_id for t in over if t.error is not None}

    def _taken(self, xid: RequestId) -> None:
        self._parts.loop.call_soon_threadsafe(self._engine.taken, xid)

    def preempted(self, req_ids: Iterable[str]) -> None:
        for req_id in req_ids:
            jobs = self._saves.get(req_id, [])
            for job in jobs:
                job.call_off()
            for job in jobs:
                self._parts.runtime.wait(job.left, self._parts.settings.transfer_s)

    def _leave(self, tasks: list[DecodeTask]) -> None:
        """vLLM has taken all blocks back, those too that are being copied out. Who has ordered them has let go of those
        that are placed again: no token by HTTP overtakes the word on the line that it is of other weights."""
        self._parts.loop.call_soon_threadsafe(self._engine.other_weights, tasks)
        self.preempted(list(self._saves))
        runtime = self._parts.runtime
        end_s = runtime.now_s() + LET_GO_S
        try:
            for task in tasks:
                if not task.order.request.is_opaque:
                    runtime.wait(task.unpinned, max(0.0, end_s - runtime.now_s()))
        except TimeoutError:
            _log.warning("a gateway has not let go of its requests in %g s: weights change all the same", LET_GO_S)

    def _changed(self, version: str) -> None:
        self._parts.loop.call_soon_threadsafe(self._engine.tell_version, self._tasks.all(), version)

    def _is_left(self, req_id: str) -> bool | None:
        jobs = self._saves.get(req_id)
        return None if jobs is None else all(job.left.done() for job in jobs)

    def _forget(self, req_id: str) -> None:
        del self._saves[req_id]
