"""Several choices of one HTTP request: each is a whole answer of its own, and the client gets one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dualpath.gateway.answer_writer import AnswerWriter
from dualpath.gateway.errors import ApiError
from dualpath.gateway.openai.shapes import Usage, encode_json
from dualpath.gateway.passthrough.dialects import Dialect, asks_for_usage
from dualpath.gateway.sse import SSE_DONE, data_of, decode, sse, with_data


@dataclass(slots=True)
class ChoicesWriter(AnswerWriter):
    """Chunks and answers that have ``choices``. ``body``: the client's own."""

    dialect: Dialect
    body: Mapping[str, Any]
    job_id: str
    _latest: dict[str, Any] = field(default_factory=dict)  # a chunk without its choices
    _whole: dict[int, dict[str, Any]] = field(default_factory=dict)  # of each choice

    def chunk(self, delta: Any) -> bytes:
        """Counts and ends of single choices are nobody's."""
        content = decode(data_of(delta.content))
        if not isinstance(content, dict) or not content.get("choices"):
            return b""
        content.pop("usage", None)
        content["id"] = self.job_id
        self._latest = {**content, "choices": []}
        for choice in content["choices"]:
            choice["index"] = delta.choice
        return with_data(delta.content, content)

    def end(self, usage: Usage) -> bytes:
        counts = b""
        if asks_for_usage(self.body):
            counts = sse({**self._latest, "usage": msgspec.to_builtins(usage)})
        return counts + SSE_DONE

    def failed(self, error: ApiError) -> bytes:
        return self.dialect.failed(error)

    def add(self, delta: Any) -> None:
        content = decode(delta.content)
        for choice in content["choices"]:
            choice["index"] = delta.choice
        self._whole[delta.choice] = content

    def whole(self, usage: Usage) -> bytes:
        answers = [self._whole[index] for index in sorted(self._whole)]
        choices = [choice for answer in answers for choice in answer["choices"]]
        counts = {**answers[0].get("usage", {}), **msgspec.to_builtins(usage)}
        return encode_json({**answers[0], "id": self.job_id, "choices": choices, "usage": counts})
