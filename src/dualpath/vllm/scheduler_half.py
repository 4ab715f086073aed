"""The half of the connector in vLLM's scheduler: how many tokens come from outside, and what a step moves.

It decides nothing: reads have ended before vLLM is asked, so it only counts. One thread, vLLM's engine core. What a
client may have made up (``kv_transfer_params``) never raises here, since that would end the engine.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dualpath.core.ids import RequestId
from dualpath.core.plan import Role
from dualpath.vllm.messages import Load, Push, Save, StepWork, attached_to, named_in

_log = logging.getLogger(__name__)


class VllmRequest(Protocol):
    """The part of ``vllm.v1.request.Request`` that is read here."""

    request_id: str
    num_tokens: int
    num_prompt_tokens: int
    kv_transfer_params: dict[str, Any] | None

    @property
    def all_token_ids(self) -> Sequence[int]: ...


@dataclass(slots=True)
class _Tracked:
    request: VllmRequest
    xid: RequestId
    num_tokens: int  # prefill: of the hit; decode: of the prompt in the decode buffer
    next_block: int  # prefill: first block that is not pushed yet; decode: not saved yet
    block_ids: list[int] = field(default_factory=list)
    num_local_tokens: int = 0  # in vLLM's own prefix cache, as last asked
    is_taken: bool = False  # decode: the load was ordered, or is not needed; it happens once
    is_pushed: bool = False  # prefill: the last push was ordered
    has_work: bool = False  # the worker knows of blocks that must not be freed under it


class SchedulerHalf:
    def __init__(self, role: Role, block_tokens: int) -> None:
        self._is_prefill = role is Role.PREFILL
        self._block_tokens = block_tokens
        self._tracked: dict[str, _Tracked] = {}
        self._not_ours: set[str] = set()  # vLLM's requests that were looked at, and are served without us
        self._loads: list[Load] = []
        self._refused: list[RequestId] = []
        self._unneeded: list[RequestId] = []

    def matched(self, request: VllmRequest, num_computed_tokens: int) -> tuple[int, bool]:
        """(tokens behind ``num_computed_tokens`` that come from outside, whether they come beside the steps)."""
        name = request.request_id
        if name not in self._tracked and name not in self._not_ours and not self._track(request):
            self._not_ours.add(name)  # vLLM asks again at every step for which it has no room for the request
        tracked = self._tracked.get(name)
        if tracked is None or tracked.is_taken:  # preempted on the decode side: vLLM computes it again
            return 0, False
        tracked.num_local_tokens = num_computed_tokens
        num_external = max(0, tracked.num_tokens - num_computed_tokens)
        return num_external, num_external > 0 and not self._is_prefill

    def allocated(self, request: VllmRequest, block_ids: Sequence[int], num_external_tokens: int) -> None:
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            return
        tracked.block_ids = list(block_ids)
        if num_external_tokens == 0:
            if not (self._is_prefill or tracked.is_taken):  # its slots are not kept for as long as it decodes
                self._unneeded.append(tracked.xid)
                tracked.is_taken = True
            return
        first = tracked.num_local_tokens // self._block_tokens
        end = -(-(tracked.num_local_tokens + num_external_tokens) // self._block_tokens)
        self._loads.append(Load(request.request_id, tracked.xid, first, tuple(block_ids[first:end])))
        tracked.is_taken, tracked.has_work = not self._is_prefill, self._is_prefill

    def step(self, output: Any) -> StepWork:
        """``output``: a ``SchedulerOutput``."""
        preempted = tuple(sorted(output.preempted_req_ids or ()))  # those too that were given up since
        self._start_over(preempted if self._is_prefill else ())
        work = StepWork(self._loads, refused=self._refused, unneeded=self._unneeded, preempted=preempted)
        self._loads, self._refused, self._unneeded = [], [], []
        for new in output.scheduled_new_reqs:
            if (tracked := self._tracked.get(new.req_id)) is not None:
                tracked.block_ids = list(new.block_ids[0])
                self._after_step(work, tracked, new.num_computed_tokens + output.num_scheduled_tokens[new.req_id])
        cached = output.scheduled_cached_reqs
        for req_id, ids, num_computed in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            if (tracked := self._tracked.get(req_id)) is None:
                continue
            if req_id in cached.resumed_req_ids:
                tracked.block_ids = list(ids[0])
                self._start_over([req_id] if self._is_prefill else ())
            elif ids:
                tracked.block_ids += ids[0]
            self._after_step(work, tracked, num_computed + output.num_scheduled_tokens[req_id])
        return work

    def failed(self, req_ids: Iterable[str]) -> None:
        """Loads failed in the last step: vLLM computes those prompts again, and all of it is pushed again."""
        self._start_over(req_ids)

    def finished(self, request_id: str) -> bool:
        """Whether the worker must say first that vLLM's blocks of the request can be freed."""
        self._not_ours.discard(request_id)
        tracked = self._tracked.pop(request_id, None)
        return tracked is not None and tracked.has_work

    def _track(self, request: VllmRequest) -> bool:
        """Whether it is ours."""
        try:
            attached = attached_to(request.kv_transfer_params)
        except ValueError as error:
            self._refuse(request, named_in(request.kv_transfer_params), str(error))
            return False
        if attached is None:
            return False
        num_prompt = request.num_prompt_tokens
        if not attached.is_for(request.all_token_ids[:num_prompt]) or (
            self._is_prefill and num_prompt != attached.num_prompt_tokens
        ):
            self._refuse(request, attached.xid, "its prompt is another one")
            return False
        if self._is_prefill:  # the last token is always computed
            most = (request.num_prompt_tokens - 1) // self._block_tokens * self._block_tokens
            num_tokens = min(attached.num_tokens // self._block_tokens * self._block_tokens, most)
        else:
            num_tokens = min(attached.num_tokens, request.num_tokens)
        next_block = 0 if self._is_prefill else num_tokens // self._block_tokens
        self._tracked[request.request_id] = _Tracked(request, attached.xid, num_tokens, next_block)
        return True

    def _refuse(self, request: VllmRequest, xid: RequestId | None, reason: str) -> None:
        """Whoever waits on the control line is told."""
        _log.warning("request %s is served without DualPath: %s", request.request_id, reason)
        if xid is not None:
            self._refused.append(xid)

    def _start_over(self, req_ids: Iterable[str]) -> None:
        for req_id in req_ids:
            if (tracked := self._tracked.get(req_id)) is not None:
                tracked.next_block, tracked.is_pushed = 0, False

    def _after_step(self, work: StepWork, tracked: _Tracked, num_computed_tokens: int) -> None:
        """What is complete when this step's forward has ended."""
        if self._is_prefill:
            self._push(work, tracked, num_computed_tokens)
        else:
            self._save(work, tracked, num_computed_tokens)

    def _push(self, work: StepWork, tracked: _Tracked, num_computed_tokens: int) -> None:
        num_prompt = tracked.request.num_prompt_tokens
        is_last = num_computed_tokens >= num_prompt
        end = -(-num_prompt // self._block_tokens) if is_last else num_computed_tokens // self._block_tokens
        if tracked.is_pushed or not (is_last or end > tracked.next_block):
            return
        ids = tuple(tracked.block_ids[:end])
        work.pushes.append(Push(tracked.request.request_id, tracked.xid, tracked.next_block, ids, is_last))
        tracked.next_block, tracked.is_pushed, tracked.has_work = end, is_last, True

    def _save(self, work: StepWork, tracked: _Tracked, num_computed_tokens: int) -> None:
        tokens = tracked.request.all_token_ids
        num_known = min(num_computed_tokens, len(tokens))
        while (end := (tracked.next_block + 1) * self._block_tokens) <= num_known:
            block = tracked.next_block
            ids = tuple(tokens[block * self._block_tokens : end])
            work.saves.append(Save(tracked.request.request_id, tracked.xid, block, tracked.block_ids[block], ids))
            tracked.next_block, tracked.has_work = block + 1, True
