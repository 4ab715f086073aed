"""Content blocks of Anthropic's messages, read as text, calls and results."""

from __future__ import annotations

import json
from typing import Any

from dualpath.gateway.errors import invalid
from dualpath.gateway.openai.messages import not_shown

INVALID_JSON = "INVALID_JSON"  # Anthropic's own name for arguments that are none


def text_of(block: dict[str, Any], where: str, name: str = "text") -> str:
    text = block.get(name)
    if not isinstance(text, str):
        raise invalid(f"{where}.{name} must be a string", f"{where}.{name}")
    return text


def user_text(block: dict[str, Any], where: str) -> str:
    """What a user shows: text, or a document that is text. Nothing else can be shown to this model."""
    kind = block.get("type")
    if kind == "text":
        return text_of(block, where)
    text = _shown(block)
    if text is None:
        raise invalid(f"{where}.type: this model takes text only, not {kind!r}", f"{where}.type")
    return text


def result_text(block: dict[str, Any], where: str) -> str:
    """What a tool has found. Where it is no text the model is told so: the conversation has to go on."""
    content = block.get("content")
    if content is None or isinstance(content, str):
        text = content or ""
    elif isinstance(content, list):
        text = "\n".join(_result_part(part, f"{where}.content.{i}") for i, part in enumerate(content))
    else:
        text = json.dumps(content, ensure_ascii=False)
    if block.get("is_error") is True and "error" not in text[:100].lower():
        return f"Error: {text}" if text else "Error"
    return text


def call_of(block: dict[str, Any], where: str) -> dict[str, Any]:
    """A call as the chat API has it."""
    name, arguments = text_of(block, where, "name"), block.get("input")
    if isinstance(arguments, dict) and arguments.keys() == {INVALID_JSON}:
        arguments = str(arguments[INVALID_JSON])  # as the model wrote it
    return {"id": block.get("id"), "type": "function", "function": {"name": name, "arguments": arguments}}


def _result_part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise invalid(f"{where} must be an object", where)
    if part.get("type") == "text":
        return text_of(part, where)
    text = _shown(part)
    return not_shown(part.get("type")) if text is None else text


def _shown(block: dict[str, Any]) -> str | None:
    """The text of a document or of a search result; None where there is none."""
    kind, source, title = block.get("type"), block.get("source"), block.get("title")
    texts: list[Any] = []
    if kind == "document" and isinstance(source, dict):
        if source.get("type") == "text":
            texts = [source.get("data")]
        elif source.get("type") == "content":
            content = source.get("content")
            texts = [content] if isinstance(content, str) else _texts(content)
    elif kind == "search_result":
        texts = [source, *_texts(block.get("content"))]
    if not texts or not all(isinstance(text, str) for text in texts):
        return None
    return "\n".join([title, *texts] if isinstance(title, str) else texts)


def _texts(content: object) -> list[Any]:
    parts = content if isinstance(content, list) else []
    return [part.get("text") if isinstance(part, dict) else None for part in parts]
