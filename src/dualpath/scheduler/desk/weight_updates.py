"""An update of weights over all engines: each loads them, then it is decided, then each changes between two forwards.

An update begins a namespace of its own: nothing is wiped, and nothing that former weights have computed is found any
more. When every engine that is there has loaded the weights, they are decided upon: requests are placed for them from
then on, and an engine that does not take them counts as lost until it has (``ready``). If one cannot load them, all go
on with those that they have. Engines without room for two change before the decision, all of them, or they go back.
An order for other weights than an engine's is refused by the engine, so between the moments no request meets both.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from dualpath.core.errors import ConfigError, DualPathError, EngineLostError, WeightsError
from dualpath.core.ids import EngineId
from dualpath.core.keys import Namespace
from dualpath.core.runtime import Runtime
from dualpath.core.weights import WeightEpoch, Weights
from dualpath.scheduler.blocks import IndexView
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.engine_call import EngineFailure, ask
from dualpath.scheduler.health import Engine
from dualpath.scheduler.membership import Membership
from dualpath.scheduler.placer import Placer
from dualpath.scheduler.tasks import TaskSet

T = TypeVar("T")
OpenNamespace = Callable[[Namespace], Awaitable[None]]  # makes the index know what is stored in it

_log = logging.getLogger(__name__)


class Updates:
    """Event loop only. One update at a time."""

    def __init__(
        self,
        engines: Mapping[EngineId, Engine],
        membership: Membership,
        placer: Placer,
        index: IndexView,
        namespace: Namespace,
        open_namespace: OpenNamespace | None,
        config: SchedulerConfig,
        runtime: Runtime,
        tasks: TaskSet,
    ) -> None:
        """``namespace`` is that of the weights that engines were started with. None: there can be no other."""
        self._engines, self._membership, self._placer = engines, membership, placer
        self._index, self._namespace, self._open_namespace = index, namespace, open_namespace
        self._config, self._runtime, self._tasks = config, runtime, tasks
        self.epoch = WeightEpoch(Weights(), namespace.model_fingerprint)
        self._latest = 0  # number of an update, failed ones included
        self._has_decided = False  # upon weights of its own
        self._has_heard = False  # from an engine, which weights a former scheduler had decided upon
        self._ordered: set[Weights] = set()  # that engines may have without a decision
        self._turn = asyncio.Lock()

    async def find(self) -> None:
        """What a former scheduler has decided upon: the latest weights that an engine has."""
        found = await asyncio.gather(*map(self._weights_of, self._engines), return_exceptions=True)
        self._has_heard = any(isinstance(one, tuple) for one in found)
        latest = max((one for one in found if isinstance(one, tuple)), key=lambda one: one[0].number, default=None)
        if latest is not None and latest[0].number:
            await self._go_on_with(WeightEpoch(*latest))

    async def _go_on_with(self, epoch: WeightEpoch) -> None:
        self._latest = max(self._latest, epoch.weights.number)
        await self._begin(epoch)
        _log.warning("going on with the weights %s of %s", epoch.weights.version, epoch.weights.directory)

    async def update(self, directory: str, version: str | None = None) -> WeightEpoch:
        """Raises WeightsError where an engine cannot load them; nothing has changed then.

        What lies in ``directory`` must stay: an engine that is started again loads it from there.
        """
        await self._turn.acquire()
        try:
            there, epoch = await self._prepare(directory, version)
        except BaseException:
            self._turn.release()
            raise
        commit = self._tasks.spawn(self._commit(there, epoch))
        commit.add_done_callback(lambda _: self._turn.release())  # also where nobody waits for it any more
        if (failure := await asyncio.shield(commit)) is not None:
            raise failure
        return epoch

    async def _prepare(self, directory: str, version: str | None) -> tuple[list[EngineId], WeightEpoch]:
        """Engines that have loaded them."""
        self._latest += 1
        weights = Weights(self._latest, version or str(self._latest), directory)
        there = list(self._membership.there)
        self._ordered.add(weights)
        try:
            epoch = WeightEpoch(weights, await self._load(there, weights))
            await self._open(epoch)
        except BaseException:
            self._tasks.spawn(self._drop(there, weights))
            raise
        return there, epoch

    def flush(self) -> None:
        """No block that is stored now is found any more."""
        self.epoch = replace(self.epoch, salt=self._runtime.unique_id())

    async def ready(self, engine_id: EngineId) -> None:
        """Before an engine is given requests: it has the weights that they are for. Raises EngineFailure."""
        while True:
            weights, fingerprint = await self._weights_of(engine_id)
            epoch = self.epoch
            if self._is_news(engine_id, weights):
                await self._take_up(WeightEpoch(weights, fingerprint))
                continue
            if weights != epoch.weights:
                await self._bring(engine_id, epoch)
            if self.epoch.weights == epoch.weights:
                return

    async def check(self, engine_id: EngineId) -> None:
        """Between updates an engine may get others all the same: what a former scheduler has asked of it is done late.
        It is lost then until it has those in use, or requests would be placed there for good, and refused."""
        epoch = self.epoch
        with suppress(EngineFailure):  # whoever does not answer is noticed elsewhere
            weights, _ = await self._weights_of(engine_id)
            if weights != epoch.weights and self.epoch is epoch and not self._turn.locked():
                self._membership.mark_lost(engine_id, WeightsError("it has other weights than those in use"))

    def _is_news(self, engine_id: EngineId, weights: Weights) -> bool:
        """Whether they are of an update that a former scheduler has decided upon, and that ``find`` did not hear of as
        nobody could be asked. What changes in place may have weights that were not decided upon: of an update here, or
        of one before, of which those that ``find`` did hear from have gone back."""
        if self._has_decided or weights in self._ordered or weights.number <= self.epoch.weights.number:
            return False
        return not (self._has_heard and self._is_in_place(engine_id))

    async def _take_up(self, epoch: WeightEpoch) -> None:
        """Engines that have others are lost until they have these."""
        async with self._turn:
            if self._has_decided or epoch.weights.number <= self.epoch.weights.number:
                return
            await self._go_on_with(epoch)
        for engine_id in self._membership.there:
            self._tasks.spawn(self.check(engine_id))

    async def _bring(self, engine_id: EngineId, epoch: WeightEpoch) -> None:
        engine, weights = self._engines[engine_id], epoch.weights
        fingerprint = await self._ask(engine_id, engine.load_weights(weights))
        if fingerprint != epoch.fingerprint:
            text = f"{weights.directory} does not have the weights {weights.version} any more"
            raise EngineFailure(engine_id, EngineLostError(text))
        await self._ask(engine_id, engine.use_weights(weights))

    async def _load(self, there: Sequence[EngineId], weights: Weights) -> str:
        """The fingerprint, the same everywhere."""
        calls = [self._ask(engine_id, self._engines[engine_id].load_weights(weights)) for engine_id in there]
        found = await asyncio.gather(*calls, return_exceptions=True)
        failed = next((one for one in found if isinstance(one, BaseException)), None)
        fingerprints = {one for one in found if isinstance(one, str)}
        if failed is None and len(fingerprints) == 1:
            return fingerprints.pop()
        reason: object = failed or ("engines read different weights" if fingerprints else "no engine is there")
        if isinstance(failed, EngineFailure):
            reason = failed.cause
        raise _not_used(weights, reason) from failed

    async def _commit(self, there: Sequence[EngineId], epoch: WeightEpoch) -> WeightsError | None:
        """The decision, and what follows of it."""
        self._placer.hold("weights")
        try:
            if (failure := await self._change_in_place(there, epoch.weights)) is not None:
                return failure
            await self._begin(epoch)
            self._has_decided = True
            self._ordered.clear()
            for engine_id in [engine_id for engine_id in self._membership.there if engine_id not in there]:
                self._membership.mark_lost(engine_id, WeightsError("it was not there when weights were loaded"))
            await asyncio.gather(*(self._use(e, epoch.weights) for e in there if not self._is_in_place(e)))
        finally:
            self._placer.go_on("weights")
        _log.info("weights %s of %s in use", epoch.weights.version, epoch.weights.directory)
        return None

    async def _change_in_place(self, there: Sequence[EngineId], weights: Weights) -> WeightsError | None:
        """Engines that cannot load beside: before it is decided all of them change, or go back to what they had."""
        in_place = [engine_id for engine_id in there if self._is_in_place(engine_id)]
        if not in_place:
            return None
        calls = [self._ask(engine_id, self._engines[engine_id].use_weights(weights)) for engine_id in in_place]
        found = await asyncio.gather(*calls, return_exceptions=True)
        failed = next((one for one in found if isinstance(one, BaseException)), None)
        if failed is None:
            return None
        await asyncio.gather(*(self._use(engine_id, self.epoch.weights) for engine_id in in_place))
        return _not_used(weights, failed.cause if isinstance(failed, EngineFailure) else failed)

    async def _begin(self, epoch: WeightEpoch) -> None:
        await self._open(epoch)
        self.epoch = epoch
        self._index.use_namespace(epoch.namespace(self._namespace).digest)

    async def _open(self, epoch: WeightEpoch) -> None:
        if self._open_namespace is None:
            raise WeightsError("this server's weights cannot be changed")
        await self._open_namespace(epoch.namespace(self._namespace))

    def _is_in_place(self, engine_id: EngineId) -> bool:
        return self._engines[engine_id].info.changes_in_place

    async def _use(self, engine_id: EngineId, weights: Weights) -> None:
        if not self._membership.is_lost(engine_id):
            try:
                await self._ask(engine_id, self._engines[engine_id].use_weights(weights))
            except Exception as error:
                self._membership.mark_lost(engine_id, error)

    async def _drop(self, there: Sequence[EngineId], weights: Weights) -> None:
        """As far as engines can be asked: what one keeps it drops with the next that it loads."""
        calls = [self._ask(engine_id, self._engines[engine_id].drop_weights(weights)) for engine_id in there]
        await asyncio.gather(*calls, return_exceptions=True)

    async def _weights_of(self, engine_id: EngineId) -> tuple[Weights, str]:
        return await ask(engine_id, self._engines[engine_id].weights(), self._config.stats_timeout_s)

    async def _ask(self, engine_id: EngineId, call: Awaitable[T]) -> T:
        """Loading takes as long as a start; taking others waits for a forward."""
        try:
            return await ask(engine_id, call, self._config.weights_timeout_s)
        except ConfigError as error:
            raise EngineFailure(engine_id, DualPathError(str(error))) from error


def _not_used(weights: Weights, reason: object) -> WeightsError:
    return WeightsError(f"the weights {weights.version} of {weights.directory} are not used: {reason}")
