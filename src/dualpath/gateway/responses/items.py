"""Input items of the Responses API as messages of the chat API."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from dualpath.gateway.errors import invalid
from dualpath.gateway.openai.messages import not_shown
from dualpath.gateway.responses.reasoning import reasoning_of
from dualpath.gateway.responses.tools import flat_name

_ROLES = ("user", "assistant", "system", "developer")
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
# What OpenAI's own tools leave behind: their results are kept there, nobody here can read them.
_DROPPED = frozenset(
    (
        *("web_search_call", "file_search_call", "image_generation_call", "code_interpreter_call", "mcp_list_tools"),
        *("mcp_call", "mcp_approval_request", "mcp_approval_response", "tool_search_call", "tool_search_output"),
        *("compaction", "compaction_summary", "context_compaction", "ghost_snapshot", "additional_tools", "other"),
        *("program", "program_output"),
    )
)

Recall = Callable[[object], dict[str, Any] | None]  # an item, by its id


def messages_of(items: list[dict[str, Any]], recall: Recall) -> list[dict[str, Any]]:
    """Reasoning, text and calls that follow each other are one assistant's message, as the model wrote them."""
    messages: list[dict[str, Any]] = []
    for i, item in enumerate(items):
        where = f"input[{i}]"
        found = recall(item.get("id")) if _is_reference(item) else item
        if found is None:
            message = f"{where}: the item {item.get('id')!r} is not kept here: send it whole, as with store: false"
            raise invalid(message, where, "item_not_found")
        _add_item(messages, found, where)
    return messages


def _is_reference(item: dict[str, Any]) -> bool:
    """A reference need not say that it is one: whatever else has no type is a message, and has a role."""
    kind = item.get("type")
    return kind == "item_reference" or (kind is None and "role" not in item and "id" in item)


def _add_item(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    kind = item.get("type") or ("message" if "role" in item else None)
    if kind == "message":
        _add_message(messages, item, where)
    elif kind == "reasoning":
        text = reasoning_of(item)
        if text:
            turn = _turn(messages)
            turn["reasoning_content"] = turn.get("reasoning_content", "") + text
    elif isinstance(kind, str) and kind in _DROPPED:
        return
    elif isinstance(kind, str) and kind.endswith("_output"):
        name = "id" if kind == "local_shell_call_output" and "call_id" not in item else "call_id"
        call_id, output = _string(item, name, where), item.get("output")
        messages.append({"role": "tool", "tool_call_id": call_id, "content": _output_text(output)})
    elif isinstance(kind, str) and kind.endswith("_call"):
        _turn(messages).setdefault("tool_calls", []).append(_call(kind, item, where))
    else:
        raise invalid(f"{where}.type {kind!r} is not supported", f"{where}.type", "unsupported_item")


def _turn(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message that is being put together."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _add_message(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise invalid(f"{where}.role must be one of {', '.join(_ROLES)}", f"{where}.role")
    text = _text(content, f"{where}.content", between="" if role == "assistant" else "\n")
    if role != "assistant":
        messages.append({"role": role, "content": text})
        return
    last = messages[-1] if messages else {}
    if last.get("role") == "assistant" and last["content"] and "tool_calls" not in last:
        messages.append({"role": role, "content": text})  # two answers in a row
    else:
        _turn(messages)["content"] += text


def _call(kind: str, item: dict[str, Any], where: str) -> dict[str, Any]:
    if kind == "function_call":
        name, arguments = flat_name(_string(item, "name", where), item.get("namespace")), item.get("arguments")
    elif kind == "custom_tool_call":
        name, arguments = flat_name(_string(item, "name", where), item.get("namespace")), {"input": item.get("input")}
    else:  # a shell's, a computer's: made by another model, told in the same way
        name, arguments = kind.removesuffix("_call"), item.get("action") or item.get("operation") or {}
    return {
        "id": _string(item, "call_id", where),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _text(content: object, where: str, *, between: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise invalid(f"{where} must be a string or an array of parts", where)
    texts = []
    for i, part in enumerate(content):
        text = _part_text(part)
        if text is None:
            kind = part.get("type") if isinstance(part, dict) else None
            message = f"{where}[{i}].type: this model takes text only, not {kind!r}"
            raise invalid(message, f"{where}[{i}].type")
        texts.append(text)
    return between.join(texts)


def _output_text(output: object) -> str:
    """What a tool has found. Where it is no text the model is told so: the conversation has to go on."""
    if output is None or isinstance(output, str):
        return output or ""
    if not isinstance(output, list):
        return json.dumps(output, ensure_ascii=False)
    texts = []
    for part in output:
        text = _part_text(part)
        kind = part.get("type") if isinstance(part, dict) else None
        texts.append(not_shown(kind) if text is None else text)
    return "\n".join(texts)


def _part_text(part: object) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return None
    text = part.get(_TEXT_PARTS.get(str(part.get("type")), ""))
    return text if isinstance(text, str) else None


def _string(item: dict[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise invalid(f"{where}.{name} must be a string", f"{where}.{name}")
    return value
