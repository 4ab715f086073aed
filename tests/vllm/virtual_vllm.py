"""A vLLM that is not there, on virtual time: its order of calls on both halves, over a model of hashes.

Blocks that nobody owns hold poison: whoever writes them, or uses what was there before, is found out.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import torch
from tests.vllm.virtual_model import BLOCK, CONTENT, LAYERS, next_token, rows

from dualpath.core.errors import EngineLostError
from dualpath.core.exchange import RefusedError
from dualpath.core.weights import Weights
from dualpath.testing.runtime import VirtualRuntime
from dualpath.vllm.door import PATH, VERBS
from dualpath.vllm.scheduler_half import SchedulerHalf
from dualpath.vllm.worker.half import DecodeWorkerHalf, PrefillWorkerHalf

BLOCKS = 40
BUDGET = 192  # new tokens of a step
_POISON = -1.0
_LAYER_S = 1e-3


@dataclass(eq=False)
class _Asked:
    """A ``Request`` of vLLM's."""

    request_id: str
    all_token_ids: list[int]
    num_prompt_tokens: int
    max_tokens: int
    kv_transfer_params: dict[str, Any] | None
    made: asyncio.Queue[int | None] = field(default_factory=asyncio.Queue)  # None: there are no more
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    status: str = "waiting"  # or taking, running, ended
    was_preempted: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)


class VirtualVllm:
    """Server and engine. ``url``, ``check``, ``ask`` and ``events`` are those of ``vllm.api_server.ApiServer``."""

    def __init__(
        self,
        name: str,
        runtime: VirtualRuntime,
        scheduler: SchedulerHalf,
        workers: Sequence[PrefillWorkerHalf | DecodeWorkerHalf],
        kv: Sequence[dict[str, torch.Tensor]],
        chance: random.Random,
        load_failures: list[set[str]],
    ) -> None:
        """``workers`` and ``kv`` of each rank. ``load_failures``: what ranks gather, of the step that is under way."""
        self.url, self.violations = name, list[str]()
        self.preempts, self.refuses_weights, self.weights = True, 0.0, ""
        self._runtime, self._scheduler, self._workers, self._chance = runtime, scheduler, workers, chance
        # [rank][layer], each [blocks, heads, tokens, content]
        self._kv = [[layer.numpy() for layer in one.values()] for one in kv]
        for layer in self._layers:
            layer[:] = _POISON
        self._load_failures = load_failures
        self._reports = {kind: Counter[str]() for kind in ("sent", "received")}  # of ranks, as vLLM counts them
        self._not_received: set[str] = set()
        self._free = list(range(1, BLOCKS))
        self._requests: dict[str, _Asked] = {}
        self._new_blocks: dict[str, list[int]] = {}
        self._ended: set[str] = set()  # since the last step
        self._work = asyncio.Event()
        self._loads_synchronously = isinstance(workers[0], PrefillWorkerHalf)
        self._num_asked = 0
        self._given_up: list[_Asked] = []  # looked at between steps, as vLLM does
        self._is_short = False  # of blocks
        self._is_paused, self._turn, self._at_door = False, asyncio.Lock(), asyncio.Lock()
        self._told: list[str] = []  # preempted between two steps
        self._taken_back: list[int] = []  # their blocks

    # -- the API server -----------------------------------------------------------------------------------------------

    async def check(self) -> None: ...

    async def ask(self, path: str, body: Any, headers: dict[str, str] | None = None) -> bytes:
        if path.startswith(PATH):
            return await self._ask_door(path.removeprefix(PATH), body.decode())
        tokens = [token async for token in self._answer(body)]
        return msgspec.json.encode({"choices": [{"token_ids": tokens, "finish_reason": "length"}]})

    async def events(self, path: str, body: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        num_left = body["sampling_params"]["max_tokens"]
        async for token in self._answer(body):
            num_left -= 1
            choice = {"token_ids": [token], "finish_reason": None if num_left else "length"}
            yield b"data: " + msgspec.json.encode({"choices": [choice]}) + b"\n\n"

    async def _answer(self, body: dict[str, Any]) -> AsyncGenerator[int, None]:
        tokens, params = list(body["token_ids"]), body["sampling_params"]
        self._num_asked += 1
        name = f"{body['request_id']}-{self._num_asked}"
        request = _Asked(name, tokens, len(tokens), params["max_tokens"], body["kv_transfer_params"])
        self._requests[name] = request
        self._work.set()
        try:
            while (token := await request.made.get()) is not None:
                yield token
        finally:
            self._given_up.append(request)
            self._work.set()

    # -- behind the door: vLLM's ``AsyncLLM``, with ``vllm.extension`` ------------------------------------------------

    async def _ask_door(self, verb: str, told: str) -> bytes:
        async with self._at_door:
            refusal = await VERBS[verb](self, told)
        if refusal is not None:
            raise RefusedError(409, refusal)
        return b"{}"

    async def is_paused(self) -> bool:
        return self._is_paused

    async def pause_generation(self, mode: str, *, clear_cache: bool) -> None:
        assert (mode, clear_cache) == ("keep", False)
        self._is_paused = True
        while self._has_work or self._turn.locked():  # noqa: ASYNC110
            await asyncio.sleep(_LAYER_S)

    async def resume_generation(self) -> None:
        self._is_paused = False
        self._work.set()

    async def reset_prefix_cache(self, *, reset_running_requests: bool) -> bool:
        assert self._is_paused
        assert reset_running_requests
        for request in [r for r in self._requests.values() if r.status == "running"]:
            self._told.append(request.request_id)
            self._taken_back += request.blocks
            request.blocks, request.num_computed = [], 0
            request.status, request.was_preempted = "waiting", True
        if self.num_blocks_used:
            raise RuntimeError("requests wait for remote KV")
        return True

    async def collective_rpc(self, method: str, args: tuple[str, ...] = ()) -> list[Any]:
        if method == "dualpath_check_weights":
            return [None] * len(self._workers)
        weights = msgspec.json.decode(args[0], type=Weights)
        if method == "dualpath_changes_kv":
            return [worker._engine.parts.weights.changes_kv(weights) for worker in self._workers]
        assert method == "dualpath_change_weights"
        if self._chance.random() < self.refuses_weights:
            return ["a test's fault"] * len(self._workers)
        async with self._turn:
            for worker in self._workers:
                await self._runtime.to_thread(worker.change_weights, weights, self._reload)
            self._free_taken_back()
        return [None] * len(self._workers)

    def _reload(self, directory: str) -> None:
        assert self._is_paused
        if self.num_blocks_used:
            self.violations.append(f"{self.url}: KV of former weights is there when others come")
        self._runtime.block_s(0.05)
        self.weights = Path(directory).name

    def _free_taken_back(self) -> None:
        """Now vLLM may write them."""
        for block in self._taken_back:
            for layer in self._layers:
                layer[block] = _POISON
        self._free += self._taken_back
        self._taken_back = []

    # -- the engine ---------------------------------------------------------------------------------------------------

    @property
    def _has_work(self) -> bool:
        """Paused it only says goodbye."""
        if not self._is_paused:
            return bool(self._requests)
        gone = {request.request_id for request in self._given_up}
        return any(r.status == "ended" or name in gone for name, r in self._requests.items())

    async def run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._has_work:
                try:
                    async with self._turn:
                        await self._runtime.to_thread(self._step)
                except Exception as error:
                    self.violations.append(f"{self.url}: the engine has ended: {error!r}")
                    for request in self._requests.values():
                        request.made.put_nowait(None)
                    raise EngineLostError(self.url) from error
                await asyncio.sleep(_LAYER_S)

    @property
    def num_blocks_used(self) -> int:
        return BLOCKS - 1 - len(self._free) - len(self._taken_back)

    def _step(self) -> None:
        given_up, self._given_up = self._given_up, []
        for request in given_up:
            if request.status != "ended":
                self._end(request)
        self._new_blocks = {}
        preempted = [*self._told, *([] if self._is_paused else self._preempt())]
        self._told = []
        scheduled = {} if self._is_paused else self._continue()
        before = {name: self._requests[name].num_computed for name in scheduled}
        new = set() if self._is_paused else self._admit(scheduled, before)
        ended, self._ended = self._ended, set()
        work = self._scheduler.step(self._output(scheduled, before, new, preempted))
        for worker in self._workers:
            worker.preempted(work.preempted)
        self._free_taken_back()
        for worker in self._workers:
            worker.begin(work)
        is_sync = self._loads_synchronously and bool(work.loads)
        if is_sync:
            self._start_load()
        wrong = self._forward(scheduled, before) if scheduled else {}
        if not is_sync:
            self._start_load()
        self._load_failures[:] = [_failed_loads(worker) for worker in self._workers]
        for worker in self._workers:
            worker.end_step()
        left = self._all_ranks("sent", [worker.finished(ended) for worker in self._workers])
        self._update(scheduled, before, wrong, left)

    def _start_load(self) -> None:
        for worker in self._workers:
            worker.start_load()

    def _all_ranks(self, kind: str, reports: Sequence[set[str]]) -> set[str]:
        """Those of which now all ranks have told."""
        counts = self._reports[kind]
        counts.update(name for report in reports for name in sorted(report))
        complete = {name for name, count in counts.items() if count == len(self._workers)}
        for name in complete:
            del counts[name]
        return complete

    def _preempt(self) -> list[str]:
        running = [r for r in self._requests.values() if r.status == "running"]
        if not (running and (self._is_short or (self.preempts and self._chance.random() < 0.03))):
            return []
        self._is_short = False
        request = running[-1]
        self._give_back(request)
        request.num_computed, request.status, request.was_preempted = 0, "waiting", True
        return [request.request_id]

    def _continue(self) -> dict[str, int]:
        scheduled: dict[str, int] = {}
        for request in [r for r in self._requests.values() if r.status == "running"]:
            num_new = min(BUDGET - sum(scheduled.values()), request.num_tokens - request.num_computed)
            if num_new > 0 and self._allocate(request, request.num_computed + num_new):
                scheduled[request.request_id] = num_new
        return scheduled

    def _admit(self, scheduled: dict[str, int], before: dict[str, int]) -> set[str]:
        new: set[str] = set()
        for request in [r for r in self._requests.values() if r.status == "waiting"]:
            left = BUDGET - sum(scheduled.values())
            if left <= 0:
                break
            num_external, is_async = 0, False
            if request.num_computed == 0:
                num_external, is_async = self._scheduler.matched(request, 0)
            done = request.num_computed + num_external
            num_new = 0 if is_async else min(left, request.num_tokens - done)
            if not self._allocate(request, done + num_new):
                break
            self._scheduler.allocated(request, request.blocks, num_external)
            request.num_computed, request.status = done, "taking" if is_async else "running"
            if not is_async:
                scheduled[request.request_id], before[request.request_id] = num_new, done
                new.add(request.request_id)
        return new

    def _output(
        self, scheduled: dict[str, int], before: dict[str, int], new: set[str], preempted: list[str]
    ) -> SimpleNamespace:
        again = {name for name in new if self._requests[name].was_preempted}
        first = [
            SimpleNamespace(req_id=n, block_ids=(list(self._requests[n].blocks),), num_computed_tokens=before[n])
            for n in scheduled
            if n in new - again
        ]
        others = [name for name in scheduled if name not in new - again]
        whole = {name: list(self._requests[name].blocks) for name in again}
        ids = [whole.get(name) or self._new_blocks.get(name) for name in others]
        return SimpleNamespace(
            preempted_req_ids=set(preempted),
            scheduled_new_reqs=first,
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=others,
                new_block_ids=[(found,) if found else None for found in ids],
                num_computed_tokens=[before[name] for name in others],
                resumed_req_ids=again,
            ),
            num_scheduled_tokens=dict(scheduled),
        )

    def _forward(self, scheduled: dict[str, int], before: dict[str, int]) -> dict[str, str]:
        """What was computed from wrong KV, and why."""
        wrong: dict[str, str] = {}
        for layer in range(LAYERS):
            for worker in self._workers:
                if isinstance(worker, PrefillWorkerHalf):
                    worker.wait_layer(layer)
            self._runtime.block_s(_LAYER_S * self._chance.random())
            for name, num_new in scheduled.items():
                request, start, nonsense = self._requests[name], before[name], name in wrong
                for rank in range(len(self._workers)):
                    expected = rows(request.all_token_ids[: start + num_new], layer, self.weights, rank)
                    found = self._rows_of(request, rank, layer, start + num_new)
                    if not np.array_equal(found[:start], expected[:start]):
                        text = f"layer {layer} of {name} has wrong KV before token {start} in rank {rank}"
                        wrong.setdefault(name, text)
                    for position in range(start, start + num_new):
                        place = request.blocks[position // BLOCK], 0, position % BLOCK
                        self._kv[rank][layer][place] = expected[position] + nonsense / 2
            for worker in self._workers:
                if isinstance(worker, PrefillWorkerHalf):
                    worker.layer_computed(layer)
        return wrong

    @property
    def _layers(self) -> list[np.ndarray]:
        """Of all ranks."""
        return [layer for rank in self._kv for layer in rank]

    def _rows_of(self, request: _Asked, rank: int, layer: int, num_tokens: int) -> np.ndarray:
        blocks = request.blocks[: -(-num_tokens // BLOCK)]
        return self._kv[rank][layer][blocks, 0].reshape(-1, CONTENT)[:num_tokens]

    def _update(self, scheduled: dict[str, int], before: dict[str, int], wrong: dict[str, str], left: set[str]) -> None:
        failed: set[str] = set()
        prefill = [worker for worker in self._workers if isinstance(worker, PrefillWorkerHalf)]
        if prefill:
            errors = set[int]().union(*(worker.load_errors for worker in prefill))
            for name in scheduled:
                request = self._requests[name]
                bad = [number for number, block in enumerate(request.blocks) if block in errors]
                if bad and bad[0] * BLOCK < before[name]:
                    failed.add(name)
                    request.num_computed = bad[0] * BLOCK
            self._scheduler.failed(set[str]().union(*(worker.failures.req_ids for worker in prefill)))
        else:
            reports = [worker.taken() for worker in self._workers if isinstance(worker, DecodeWorkerHalf)]
            self._not_received |= set[str]().union(*(failed for _, failed in reports))
            received = self._all_ranks("received", [received for received, _ in reports])
            self._take_in(received, self._not_received & received)
            self._not_received -= received
        self.violations += [text for name, text in wrong.items() if name not in failed]
        for name in left:
            self._give_back(self._requests.pop(name))
        for name, num_new in scheduled.items():
            request = self._requests.get(name)
            if name not in failed and request is not None and request.status == "running":
                self._advance(request, before[name] + num_new)

    def _take_in(self, received: set[str], failed: set[str]) -> None:
        for name in received:
            request = self._requests[name]
            if request.status == "ended":
                self._give_back(self._requests.pop(name))
                continue
            request.status = "waiting"
            if name in failed:
                self._give_back(request)
                request.num_computed = 0
            request.num_computed = min(request.num_computed, request.num_tokens - 1)

    def _advance(self, request: _Asked, num_computed: int) -> None:
        request.num_computed = num_computed
        if num_computed < request.num_tokens:
            return
        token = next_token(request.all_token_ids, self.weights)
        request.all_token_ids.append(token)
        request.made.put_nowait(token)
        if request.num_tokens - request.num_prompt_tokens == request.max_tokens:
            request.made.put_nowait(None)
            self._end(request)

    def _end(self, request: _Asked) -> None:
        was_taking, request.status = request.status == "taking", "ended"
        self._ended.add(request.request_id)
        if not (self._scheduler.finished(request.request_id) | was_taking):
            self._give_back(self._requests.pop(request.request_id))

    # -- blocks -------------------------------------------------------------------------------------------------------

    def _allocate(self, request: _Asked, num_tokens: int) -> bool:
        num_wanted = -(-num_tokens // BLOCK) - len(request.blocks)
        if num_wanted > len(self._free):
            self._is_short = True
            return False
        for _ in range(max(0, num_wanted)):
            block = self._free.pop(0)
            if any((layer[block] != _POISON).any() for layer in self._layers):
                self.violations.append(f"{self.url}: somebody has written block {block}, which was free")
            request.blocks.append(block)
            self._new_blocks.setdefault(request.request_id, []).append(block)
        return True

    def _give_back(self, request: _Asked) -> None:
        for block in request.blocks:
            for layer in self._layers:
                layer[block] = _POISON
        self._free += request.blocks
        request.blocks = []


def _failed_loads(worker: PrefillWorkerHalf | DecodeWorkerHalf) -> set[str]:
    """Of this step. All of its layers have been waited for."""
    loads = worker._loads if isinstance(worker, PrefillWorkerHalf) else []
    return {one.load.req_id for one in loads if one.error is not None}
