"""/v1/completions' answers: text_completion objects, whole or in chunks."""

from __future__ import annotations

from dualpath.gateway.job import GenerationJob
from dualpath.gateway.openai.sampling import Output
from dualpath.gateway.openai.shapes import CompletionChoice, CompletionLogprobs, Usage, encode_json
from dualpath.gateway.openai.writer import UsageIn, Writer
from dualpath.gateway.text.choice import Delta
from dualpath.gateway.text.tokenizer import Tokenizer


class CompletionWriter(Writer):
    chunk_object = whole_object = "text_completion"

    def __init__(
        self,
        job: GenerationJob,
        tokenizer: Tokenizer,
        output: Output,
        *,
        echo: bool = False,
        usage: UsageIn = UsageIn.NOTHING,
    ) -> None:
        super().__init__(job, tokenizer, output, usage=usage)
        self._echoes = [self._echo(choice.index) if echo else "" for choice in job.choices]
        self._has_prompt = echo  # in its logprobs
        self._logprobs = self._logprob_writers([0] * len(job.choices))
        self._started = [False] * len(job.choices)
        self._pieces: list[list[Delta]] = [[] for _ in job.choices]

    def chunk(self, delta: Delta) -> bytes:
        return self._chunk(self._choice(delta))

    def add(self, delta: Delta) -> None:
        self._pieces[delta.index].append(delta)

    def whole(self, usage: Usage) -> bytes:
        choices = []
        for pieces in self._pieces:
            last = pieces[-1]
            text = "".join(piece.text for piece in pieces)
            tokens = [event for piece in pieces for event in piece.tokens]
            choices.append(self._choice(Delta(last.index, text, tokens, last.finish_reason, last.stop_reason)))
        body: bytes = encode_json(self._envelope(self.whole_object, choices, usage))
        return body

    def _choice(self, delta: Delta) -> CompletionChoice:
        choice = CompletionChoice(
            delta.index, delta.text, self._logprobs_of(delta), delta.finish_reason, delta.stop_reason
        )
        choice.token_ids = self._token_ids(delta)
        if not self._started[delta.index]:
            self._started[delta.index] = True
            choice.text = self._echoes[delta.index] + choice.text
            choice.prompt_token_ids = self._prompt_token_ids(delta.index)
            choice.prompt_logprobs = self._prompt_logprobs(delta.index)
        return choice

    def _logprobs_of(self, delta: Delta) -> CompletionLogprobs | None:
        if not self._logprobs:
            return None
        prompt = self.job.prompt_events(delta.index) if self._has_prompt and not self._started[delta.index] else []
        tokens = [*prompt, *delta.tokens]
        return self._logprobs[delta.index].completion(tokens) if tokens else None

    def _echo(self, choice_index: int) -> str:
        prompt = self.job.prompt_of(choice_index)
        if prompt.text is not None:
            return prompt.text
        return self.tokenizer.decode(prompt.token_ids, skip_special_tokens=self.output.skip_special_tokens)
