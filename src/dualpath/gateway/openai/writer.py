"""What the writers of completions and chat have in common: choices in envelopes, usage where it is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from dualpath.gateway.answer_writer import AnswerWriter
from dualpath.gateway.errors import ApiError
from dualpath.gateway.job import GenerationJob
from dualpath.gateway.openai.logprobs import LogprobWriter, prompt_logprobs
from dualpath.gateway.openai.sampling import Output
from dualpath.gateway.openai.shapes import Envelope, PromptLogprobs, Usage, json_line
from dualpath.gateway.sse import SSE_DONE, sse
from dualpath.gateway.text.choice import Delta
from dualpath.gateway.text.tokenizer import Tokenizer

_PLACE = "choice"


def cut(event: bytes, before: bytes, place: bytes) -> tuple[bytes, bytes]:
    """What of an event stands on either side of a place, which comes behind a name: in strings quotes are escaped."""
    head, _, tail = event.partition(before + place)
    return head + before, tail


class UsageIn(Enum):
    """What of a stream says how many tokens there were."""

    NOTHING = "nothing"
    LAST_CHUNK = "last chunk"
    EVERY_CHUNK = "every chunk"


class Writer(AnswerWriter):
    chunk_object: str
    whole_object: str

    def __init__(
        self, job: GenerationJob, tokenizer: Tokenizer, output: Output, *, usage: UsageIn = UsageIn.NOTHING
    ) -> None:
        """``usage``: of a stream; a whole answer has it in any case."""
        self.job = job
        self.tokenizer = tokenizer
        self.output = output
        self.usage_in = usage
        self.usage_in_every_chunk = usage is UsageIn.EVERY_CHUNK
        self.usage_so_far = UNSET if usage is UsageIn.NOTHING else None  # OpenAI's null: it comes at the end
        # What stands around a chunk's choice, while nothing of it changes.
        event = sse(self._envelope(self.chunk_object, [_PLACE], self.usage_so_far))
        self._around = cut(event, b'"choices":[', msgspec.json.encode(_PLACE))

    def end(self, usage: Usage) -> bytes:
        if self.usage_in is UsageIn.NOTHING:
            return SSE_DONE
        return sse(self._envelope(self.chunk_object, [], usage)) + SSE_DONE

    def failed(self, error: ApiError) -> bytes:
        return sse(msgspec.Raw(error.body()))

    def _chunk(self, choice: object, prompt_token_ids: list[int] | UnsetType = UNSET) -> bytes:
        if prompt_token_ids is UNSET and not self.usage_in_every_chunk:
            head, tail = self._around
            return head + json_line(choice) + tail
        envelope = self._envelope(self.chunk_object, [choice], self.usage_so_far)
        envelope.prompt_token_ids = prompt_token_ids
        return sse(envelope)

    def _envelope(self, name: str, choices: list[Any], usage: Usage | UnsetType | None) -> Envelope:
        job = self.job
        return Envelope(job.job_id, name, job.created_unix_s, job.model_name, choices, usage)

    def _token_ids(self, delta: Delta) -> list[int] | UnsetType:
        return [event.token_id for event in delta.tokens] if self.output.return_token_ids else UNSET

    def _prompt_token_ids(self, choice_index: int) -> list[int] | UnsetType:
        return list(self.job.prompt_of(choice_index).token_ids) if self.output.return_token_ids else UNSET

    def _prompt_logprobs(self, choice_index: int) -> PromptLogprobs | UnsetType:
        num_top = self.output.num_prompt_logprobs
        if num_top is None:
            return UNSET
        return prompt_logprobs(self.job.prompt_events(choice_index), num_top, self.tokenizer.token_text)

    def _logprob_writers(self, text_offsets: Sequence[int]) -> list[LogprobWriter] | None:
        num_top = self.output.num_logprobs
        if num_top is None:
            return None
        as_ids = self.output.tokens_as_ids
        return [
            LogprobWriter(self.tokenizer, num_top, tokens_as_ids=as_ids, text_offset=offset) for offset in text_offsets
        ]
