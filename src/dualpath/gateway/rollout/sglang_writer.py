"""/generate's answers in SGLang's shape: text, ids, ``meta_info``; each event of a stream holds all there is so far."""

from __future__ import annotations

from typing import Any

import msgspec

from dualpath.core.request import FinishReason
from dualpath.gateway.answer_writer import AnswerWriter
from dualpath.gateway.errors import ApiError
from dualpath.gateway.job import GenerationJob
from dualpath.gateway.openai.logprobs import finite
from dualpath.gateway.openai.sampling import Output
from dualpath.gateway.openai.shapes import Usage, encode_json
from dualpath.gateway.rollout.vllm_writer import RecordOf
from dualpath.gateway.sse import SSE_DONE, sse
from dualpath.gateway.text.choice import Delta


class SglangWriter(AnswerWriter):
    def __init__(
        self, job: GenerationJob, output: Output, name: str, record_of: RecordOf, now: str, *, is_batch: bool
    ) -> None:
        """``name``: the client's id of the request; ``now``: the version of the weights in use."""
        self._job, self._output, self._name, self._record_of, self._now = job, output, name, record_of, now
        self._is_batch = is_batch
        self._pieces: list[list[Delta]] = [[] for _ in job.choices]

    def chunk(self, delta: Delta) -> bytes:
        self.add(delta)
        return sse(self._answer(delta.index) | ({"index": delta.index} if len(self._pieces) > 1 else {}))

    def add(self, delta: Delta) -> None:
        self._pieces[delta.index].append(delta)

    def end(self, usage: Usage) -> bytes:
        return SSE_DONE

    def failed(self, error: ApiError) -> bytes:
        return sse(msgspec.Raw(error.body()))

    def whole(self, usage: Usage) -> bytes:
        answers = [self._answer(index) for index in range(len(self._pieces))]
        return encode_json(answers if self._is_batch or len(answers) > 1 else answers[0])

    def _answer(self, index: int) -> dict[str, Any]:
        pieces = self._pieces[index]
        tokens = [event for piece in pieces for event in piece.tokens]
        record = self._record_of(self._job.choices[index].request.request_id)
        spans = [] if record is None else record.weight_versions
        meta: dict[str, Any] = {
            "id": self._name if len(self._pieces) == 1 else f"{self._name}_{index}",
            "finish_reason": _finish(pieces[-1], len(tokens)),
            "prompt_tokens": len(self._job.prompt_of(index).token_ids),
            "completion_tokens": len(tokens),
            "cached_tokens": 0 if record is None else record.num_hit_tokens,
            "weight_version": spans[-1].version if spans else self._now,
            "weight_versions": spans,
        }
        num_top = self._output.num_logprobs
        if num_top is not None:
            meta["output_token_logprobs"] = [(finite(event.logprob), event.token_id, None) for event in tokens]
            if num_top:
                meta["output_top_logprobs"] = [
                    [(finite(value), token_id, None) for token_id, value in (event.top_logprobs or {}).items()][
                        :num_top
                    ]
                    for event in tokens
                ]
        text = "".join(piece.text for piece in pieces)
        return {"text": text, "output_ids": [event.token_id for event in tokens], "meta_info": meta}


def _finish(last: Delta, num_tokens: int) -> dict[str, Any] | None:
    reason = last.finish_reason
    if reason is None:
        return None
    if reason == FinishReason.LENGTH.value:
        return {"type": reason, "length": num_tokens}
    if reason == FinishReason.ABORT.value:
        return {"type": reason, "message": "the request was aborted"}
    return {"type": reason, "matched": last.stop_reason}
