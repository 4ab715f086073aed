"""How a job's pieces become bytes for the client; completions and chat each implement it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import Any

from msgspec import UNSET, UnsetType

from dualpath.gateway.choice import Delta
from dualpath.gateway.job import Job
from dualpath.gateway.logprobs import LogprobWriter
from dualpath.gateway.sampling import Output
from dualpath.gateway.shapes import Envelope, Usage, encode_json, sse
from dualpath.gateway.tokenizer import Tokenizer


class UsageIn(Enum):
    """What of a stream says how many tokens there were."""

    NOTHING = "nothing"
    LAST_CHUNK = "last chunk"
    EVERY_CHUNK = "every chunk"


class Writer(ABC):
    """Either ``chunk`` is called for every delta (streaming), or ``add`` for every delta and then ``whole`` once."""

    chunk_object: str
    whole_object: str

    def __init__(self, job: Job, tokenizer: Tokenizer, output: Output, *, usage: UsageIn = UsageIn.NOTHING) -> None:
        """``usage``: of a stream; a whole answer has it in any case."""
        self.job = job
        self.tokenizer = tokenizer
        self.output = output
        self.usage_in = usage
        # Goes with the next chunk. OpenAI's chunks say null where usage comes at the end.
        self.usage_so_far: Usage | UnsetType | None = UNSET if usage is UsageIn.NOTHING else None

    @abstractmethod
    def chunk(self, delta: Delta) -> bytes:
        """Server-sent events for one delta; may be empty."""

    @abstractmethod
    def add(self, delta: Delta) -> None: ...

    @abstractmethod
    def whole(self, usage: Usage) -> bytes: ...

    def usage_chunk(self, usage: Usage) -> bytes:
        return sse(self._envelope(self.chunk_object, [], usage))

    def _chunk(self, choice: object, prompt_token_ids: list[int] | UnsetType = UNSET) -> bytes:
        envelope = self._envelope(self.chunk_object, [choice], self.usage_so_far)
        envelope.prompt_token_ids = prompt_token_ids
        return sse(envelope)

    def _whole(self, choices: Sequence[object], usage: Usage, prompt_token_ids: list[int] | UnsetType = UNSET) -> bytes:
        envelope = self._envelope(self.whole_object, list(choices), usage)
        envelope.prompt_token_ids = prompt_token_ids
        return encode_json(envelope)

    def _envelope(self, name: str, choices: list[Any], usage: Usage | UnsetType | None) -> Envelope:
        job = self.job
        return Envelope(job.job_id, name, job.created_unix_s, job.model_name, choices, usage)

    def _token_ids(self, delta: Delta) -> list[int] | UnsetType:
        return [event.token_id for event in delta.tokens] if self.output.return_token_ids else UNSET

    def _prompt_token_ids(self, choice_index: int) -> list[int] | UnsetType:
        return list(self.job.prompt_of(choice_index).token_ids) if self.output.return_token_ids else UNSET

    def _logprob_writers(self, text_offsets: Sequence[int]) -> list[LogprobWriter] | None:
        num_top = self.output.num_logprobs
        if num_top is None:
            return None
        as_ids = self.output.tokens_as_ids
        return [
            LogprobWriter(self.tokenizer, num_top, tokens_as_ids=as_ids, text_offset=offset) for offset in text_offsets
        ]
