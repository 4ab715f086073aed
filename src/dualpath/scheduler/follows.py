"""Finds a request's previous turn: the one whose prompt and answer its own prompt begins with."""

from __future__ import annotations

from dualpath.core.ids import BlockKey, RequestId
from dualpath.scheduler.job import Job

_MAX_KNOWN, _MAX_SAME = 10_000, 16


class EndedTurns:
    """Event loop only. Knows the most recent requests that have ended, by the key of the Full Block before
    their last token."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._ended: dict[BlockKey, list[tuple[RequestId, tuple[int, ...]]]] = {}

    def ended(self, job: Job) -> None:
        tokens = (*job.request.prompt_token_ids, *job.generated)
        num_named = (len(tokens) - 1) // self._block_tokens  # the last token may not be repeated
        if job.request.is_opaque or not num_named:
            return
        same = self._ended.setdefault(job.block_hashes.keys[num_named - 1], [])
        same.append((job.request.request_id, tokens[num_named * self._block_tokens :]))
        del same[:-_MAX_SAME]
        if len(self._ended) > _MAX_KNOWN:
            self._ended.pop(next(iter(self._ended)))

    def followed(self, job: Job) -> RequestId | None:
        """The longest one; of equal ones the latest. A template may leave the answer's last token out."""
        prompt = job.request.prompt_token_ids
        keys = job.block_hashes.keys[: len(prompt) // self._block_tokens]
        for number in range(len(keys), 0, -1):
            for request_id, tail in reversed(self._ended.get(keys[number - 1], ())):
                start = number * self._block_tokens
                if prompt[start : start + len(tail) - 1] == tail[:-1] and len(prompt) >= start + len(tail):
                    return request_id
        return None
