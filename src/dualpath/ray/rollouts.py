"""One Ray handle in front of whole clusters, for trainers whose rollout workers call actors and not HTTP, as verl's do.

    handle = start_rollouts(model="models/m", store="file:///data/kv", replicas=2, prefill=1, decode=2)
    output = ray.get(handle.generate.remote(prompt_ids=[...], sampling_params={"max_tokens": 64}, request_id="t-1"))

A replica is a ``dualpath.Cluster`` in an actor of its own. Requests of one ``request_id``, a trajectory's, go to one
replica: its index knows what they have stored. Of another replica's blocks it hears when it is started.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dualpath.cluster.setup import set_up_process
from dualpath.core.errors import DualPathError, InvalidRequestError
from dualpath.core.request import FinishReason, WeightSpan
from dualpath.protocol.wire import Failure
from dualpath.ray.runtime import Handle, import_ray
from dualpath.ray.sticky import StickyPlacement

if TYPE_CHECKING:
    from dualpath.serving.api import Cluster

_MANY = 100_000  # calls at once
_RENAMED = {"max_new_tokens": "max_tokens"}


@dataclass(frozen=True, slots=True)
class RolloutOutput:
    """What one call generated. The first three are named as in verl's ``TokenOutput``."""

    token_ids: list[int]
    log_probs: list[float] | None  # of each token, if ``logprobs`` was given
    stop_reason: str  # "completed", or "aborted": by ``abort`` or ``pause``, with the tokens that there are
    weight_versions: list[WeightSpan]  # whose weights made which tokens
    num_hit_tokens: int  # of the prompt, read from storage
    replica: int


class Replica:
    """An actor with a cluster, all engines in its process."""

    def __init__(self, model: str, store: str, settings: Mapping[str, Any]) -> None:
        self._model, self._store, self._settings = model, store, dict(settings)
        self._started: Cluster | None = None
        self._running: defaultdict[str, set[str]] = defaultdict(set)  # requests of a trajectory

    async def start(self) -> Failure | None:
        """Errors come back as values: Ray would wrap them."""
        from dualpath.serving.api import Cluster, serve_config

        try:
            set_up_process(serve_config(self._model, self._store, self._settings))
            cluster = Cluster(model=self._model, store=self._store, **self._settings)
            self._started = await cluster.__aenter__()
        except Exception as error:
            return Failure.of(error)
        return None

    @property
    def _cluster(self) -> Cluster:
        assert self._started is not None, "start it first"
        return self._started

    async def stop(self) -> None:
        await self._cluster.__aexit__(None, None, None)

    async def generate(
        self, prompt_ids: list[int], sampling_params: Mapping[str, Any], request_id: str, replica: int
    ) -> RolloutOutput | Failure:
        own_id = uuid.uuid4().hex  # the same trajectory may come twice at once
        self._running[request_id].add(own_id)
        try:
            sampling = dict(sampling_params)
            max_tokens = sampling.pop("max_tokens", None)
            if max_tokens is None:
                max_tokens = max(1, self._cluster.max_context_tokens - len(prompt_ids))
            answer = await self._cluster.complete(prompt_ids, max_tokens, request_id=own_id, **sampling)
        except DualPathError as error:
            return Failure.of(error)
        finally:
            self._running[request_id].discard(own_id)
            if not self._running[request_id]:
                del self._running[request_id]
        return RolloutOutput(
            list(answer.token_ids),
            None if answer.logprobs is None else list(answer.logprobs),
            "aborted" if answer.finish_reason is FinishReason.ABORT else "completed",
            answer.weight_versions,
            answer.record.num_hit_tokens,
            replica,
        )

    async def control(self, verb: str, *arguments: Any) -> Any:
        """What ``Cluster`` has under this name, or its Failure."""
        try:
            found = getattr(self._cluster, verb)(*arguments)
            return await found if asyncio.iscoroutine(found) else found
        except DualPathError as error:
            return Failure.of(error)

    async def abort(self, request_ids: Sequence[str] | None) -> int:
        if request_ids is None:
            return self._cluster.abort()
        return self._cluster.abort([one for request_id in request_ids for one in self._running.get(request_id, ())])


class Rollouts:
    """The actor that workers call. Verbs go to all replicas; an error says which one it was."""

    def __init__(self, replicas: Sequence[Handle]) -> None:
        self._ray = import_ray()
        self._replicas = list(replicas)
        self._placement = StickyPlacement(len(self._replicas))

    async def start(self) -> None:
        """Returns when all can serve."""
        await self._all(lambda replica: replica.start.remote())

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling_params: Mapping[str, Any],
        request_id: str,
        image_data: object = None,
        video_data: object = None,
        priority: int = 0,
    ) -> RolloutOutput:
        """``sampling_params``: fields of ``SamplingParams`` and ``cache_salt``; ``logprobs`` (true, or how many of the
        most likely tokens) and ``max_new_tokens`` are understood, too. Without ``max_tokens`` as many as the context
        has room for. ``priority`` is taken and changes nothing. Raises DualPathError.

        Where a replica is lost, the request begins again on another one.
        """
        if image_data or video_data:
            raise InvalidRequestError("images and videos are not taken", param="image_data")
        sampling = _sampling(sampling_params)
        while True:
            number = self._placement.begin(request_id)
            try:
                found = await self._replicas[number].generate.remote(
                    [int(one) for one in prompt_ids], sampling, request_id, number
                )
            except self._ray.exceptions.RayActorError:
                self._placement.lose(number)
                continue
            finally:
                self._placement.end(number)
            return _result(found)

    async def update_weights(self, directory: str, version: str | None = None) -> str:
        """As ``Cluster.update_weights``, on all replicas. Raises where one cannot load them; others may have them."""
        return str((await self._all(lambda replica: replica.control.remote("update_weights", directory, version)))[0])

    async def pause(self, mode: str = "abort") -> None:
        await self._all(lambda replica: replica.control.remote("pause", mode))

    async def resume(self) -> None:
        await self._all(lambda replica: replica.control.remote("resume"))

    async def flush(self) -> None:
        await self._all(lambda replica: replica.control.remote("flush"))

    async def abort(self, request_ids: Sequence[str] | None = None) -> int:
        """End what runs of these trajectories, or all. Returns how many requests there were."""
        return sum(await self._all(lambda replica: replica.abort.remote(request_ids)))

    async def num_replicas(self) -> int:
        """That are alive, as far as calls have shown."""
        return len(self._placement.alive)

    async def stop(self) -> None:
        """Let running requests end, then end all replicas."""
        with suppress(DualPathError):
            await self._all(lambda replica: replica.stop.remote())
        for replica in self._replicas:
            self._ray.kill(replica)

    async def _all(self, ask: Any) -> list[Any]:
        """Answers of those that are alive. One that is found lost gives none."""
        alive = self._placement.alive
        answers = await asyncio.gather(*(ask(self._replicas[one]) for one in alive), return_exceptions=True)
        found = []
        for number, answer in zip(alive, answers, strict=True):
            if isinstance(answer, self._ray.exceptions.RayActorError):
                self._placement.lose(number)
            elif isinstance(answer, BaseException):
                raise answer
            elif isinstance(answer, Failure):
                raise DualPathError(f"replica {number}: {answer.error()}")
            else:
                found.append(answer)
        if not found:
            raise DualPathError("no replica is left")
        return found


def start_rollouts(
    *, model: str, store: str, replicas: int = 1, actor_options: Mapping[str, Any] | None = None, **settings: Any
) -> Handle:
    """A handle to ``Rollouts`` once all replicas serve; Ray must be connected. ``settings``: each replica's, as of
    ``dualpath.Cluster``. ``actor_options``: what Ray is asked for each replica's process, e.g. ``{"num_gpus": 3}``.

    Raises DualPathError where one cannot start; nothing is left then. ``ray.get(handle.stop.remote())`` ends all.
    """
    ray = import_ray()
    options = {"num_cpus": 0, "max_concurrency": _MANY} | dict(actor_options or {})
    actors = [ray.remote(Replica).options(**options).remote(model, store, settings) for _ in range(replicas)]
    handle = ray.remote(Rollouts).options(num_cpus=0, max_concurrency=_MANY).remote(actors)
    try:
        ray.get(handle.start.remote())
    except Exception as error:
        for actor in (handle, *actors):
            ray.kill(actor)
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        raise DualPathError(" ".join(str(cause).split())) from None
    return handle


def _sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """By the names of ``SamplingParams``."""
    sampling = {_RENAMED.get(name, name): value for name, value in given.items()}
    logprobs = sampling.pop("logprobs", None)
    if logprobs is not None and logprobs is not False:
        sampling["num_logprobs"] = int(logprobs) if logprobs is not True else 0
    return sampling


def _result(found: RolloutOutput | Failure) -> RolloutOutput:
    if isinstance(found, Failure):
        raise found.error()
    return found
