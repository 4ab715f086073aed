"""Request bodies of Anthropic's Messages API: https://platform.claude.com/docs/en/api/messages.

Unknown fields are ignored: its clients send new ones with every release.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class ToolChoice(msgspec.Struct, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, kw_only=True):
    type: str


class OutputConfig(msgspec.Struct, kw_only=True):
    effort: str | None = None
    format: dict[str, Any] | None = None


class CountBody(msgspec.Struct, kw_only=True):
    """What a prompt is made of."""

    messages: list[dict[str, Any]]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = None  # the older place of output_config.format
    chat_template_kwargs: dict[str, Any] | None = None  # not Anthropic's: as with the other APIs


class MessagesBody(CountBody, kw_only=True):
    max_tokens: int
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    # Not Anthropic's: as with the other APIs.
    min_p: float | None = None
    seed: int | None = None
    ignore_eos: bool | None = None
    cache_salt: str | None = None
