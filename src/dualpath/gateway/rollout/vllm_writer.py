"""/inference/v1/generate's answers in vLLM's shape: token ids, their log-probabilities, whose weights made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from dualpath.core.ids import RequestId
from dualpath.core.request import RequestRecord, TokenEvent, WeightSpan
from dualpath.gateway.answer_writer import AnswerWriter
from dualpath.gateway.errors import ApiError
from dualpath.gateway.job import GenerationJob
from dualpath.gateway.openai.logprobs import finite, prompt_logprobs
from dualpath.gateway.openai.sampling import Output
from dualpath.gateway.openai.shapes import PromptLogprobs, Usage, encode_json
from dualpath.gateway.sse import SSE_DONE, sse
from dualpath.gateway.text.choice import Delta

RecordOf = Callable[[RequestId], RequestRecord | None]  # of a request, as far as it has come


class _Logprob(msgspec.Struct):
    token_id: int
    token: str  # OpenAI's name for it, as earlier vLLMs wrote
    logprob: float
    rank: int | None = None
    bytes: None = None


class _Chosen(_Logprob):
    top_logprobs: list[_Logprob] = []


class _Logprobs(msgspec.Struct):
    content: list[_Chosen]


class _Choice(msgspec.Struct):
    index: int
    token_ids: list[int]
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    weight_versions: list[WeightSpan] | None = None  # complete with the finish reason


class _Answer(msgspec.Struct):
    request_id: str
    model: str
    created: int
    choices: list[_Choice]
    usage: Usage | UnsetType | None = UNSET
    weight_version: str | UnsetType = UNSET  # of the last token
    output_mode: str = "tokens"
    prompt_logprobs: PromptLogprobs | None = None
    kv_transfer_params: None = None


class GenerateWriter(AnswerWriter):
    def __init__(
        self, job: GenerationJob, output: Output, name: str, record_of: RecordOf, now: str, *, with_usage: bool
    ) -> None:
        """``name``: the client's id of the request; ``now``: the version of the weights in use."""
        self._job, self._output, self._name, self._record_of, self._now = job, output, name, record_of, now
        self._with_usage = with_usage
        self._pieces: list[list[Delta]] = [[] for _ in job.choices]

    def chunk(self, delta: Delta) -> bytes:
        if not delta.tokens and delta.finish_reason is None:
            return b""
        return sse(self._answer([self._choice([delta])]))

    def add(self, delta: Delta) -> None:
        self._pieces[delta.index].append(delta)

    def end(self, usage: Usage) -> bytes:
        return (sse(self._answer([], usage)) if self._with_usage else b"") + SSE_DONE

    def failed(self, error: ApiError) -> bytes:
        return sse(msgspec.Raw(error.body()))

    def whole(self, usage: Usage) -> bytes:
        choices = [self._choice(pieces) for pieces in self._pieces]
        answer = self._answer(choices, usage)
        if (num_top := self._output.num_prompt_logprobs) is not None:
            answer.prompt_logprobs = prompt_logprobs(self._job.prompt_events(0), num_top, lambda _: None)
        spans = [span for choice in choices for span in choice.weight_versions or ()]
        answer.weight_version = spans[-1].version if spans else self._now
        return encode_json(answer)

    def _choice(self, pieces: Sequence[Delta]) -> _Choice:
        tokens, last = [event for piece in pieces for event in piece.tokens], pieces[-1]
        choice = _Choice(last.index, [event.token_id for event in tokens])
        choice.finish_reason, choice.stop_reason = last.finish_reason, last.stop_reason
        if self._output.num_logprobs is not None:
            choice.logprobs = _Logprobs([_chosen(event, self._output.num_logprobs) for event in tokens])
        if last.finish_reason is not None:
            record = self._record_of(self._job.choices[last.index].request.request_id)
            choice.weight_versions = [] if record is None else record.weight_versions
        return choice

    def _answer(self, choices: list[_Choice], usage: Usage | UnsetType = UNSET) -> _Answer:
        return _Answer(self._name, self._job.model_name, self._job.created_unix_s, choices, usage)


def _chosen(event: TokenEvent, num_top: int) -> _Chosen:
    ranked = list((event.top_logprobs or {}).items())
    ranks = {token_id: rank for rank, (token_id, _) in enumerate(ranked, start=1)}
    top = [_Logprob(token_id, _name(token_id), finite(value), ranks[token_id]) for token_id, value in ranked[:num_top]]
    token_id = event.token_id
    return _Chosen(token_id, _name(token_id), finite(event.logprob), ranks.get(token_id, event.rank), top_logprobs=top)


def _name(token_id: int) -> str:
    return f"token_id:{token_id}"
