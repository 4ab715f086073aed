"""Request bodies of OpenAI's Responses API: https://platform.openai.com/docs/api-reference/responses.

Unknown fields are ignored. Fields that would need a memory of former responses are declared, to be refused.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec


class Reasoning(msgspec.Struct, kw_only=True):
    effort: str | None = None
    summary: str | None = None


class TextConfig(msgspec.Struct, kw_only=True):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class InputBody(msgspec.Struct, kw_only=True):
    """What a prompt is made of."""

    REFUSED: ClassVar[tuple[str, ...]] = ("conversation", "prompt")

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None  # vLLM's
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None


class ResponsesBody(InputBody, kw_only=True):
    REFUSED: ClassVar[tuple[str, ...]] = (*InputBody.REFUSED, "background")

    max_output_tokens: int | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    background: Any = None
    # vLLM's
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    cache_salt: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
