"""Rewrites messages that a chat template does not take, in roles or in calls, into such as it does."""

from __future__ import annotations

import hashlib
from typing import Any

from dualpath.gateway.text.template import TemplateNeeds

Message = dict[str, Any]
_INSTRUCT = ("system", "developer")
SHORT_ID_CHARS = 9


def fit_roles(messages: list[Message], needs: TemplateNeeds) -> list[Message]:
    """What stands before a message decides what becomes of it, so that a longer conversation begins as a shorter one
    did."""
    out: list[Message] = []
    for message in messages:
        role = message["role"]
        if role == "developer" and not (needs.developer_later if out else needs.developer_first):
            role = "system"
            if out and out[-1]["role"] in _INSTRUCT:  # templates take one
                out[-1] = _joined(out[-1], message)
                continue
        if role == "system" and not (needs.system_later if out else needs.system_first):
            if out and out[-1]["role"] in _INSTRUCT:
                out[-1] = _joined(out[-1], message)
                continue
            role = "user"
        last = out[-1]["role"] if out else None
        joins = (last == "user" and not needs.users_in_a_row) or (last == "tool" and not needs.users_after_results)
        if role == "user" and joins:
            out[-1] = _joined(out[-1], message)
            continue
        out.append(message if role == message["role"] else {**message, "role": role})
    return out


def _joined(first: Message, second: Message) -> Message:
    return {**first, "content": f"{first['content']}\n\n{second['content']}"}


def fit_calls(messages: list[Message], needs: TemplateNeeds) -> list[Message]:
    """Calls with their results, in the form and order that the template takes."""
    if needs.short_call_ids:
        messages = [_with_short_ids(message) for message in messages]
    empty = None if needs.calls_without_content else ""
    out: list[Message] = []
    i = 0
    while i < len(messages):
        message, i = messages[i], i + 1
        calls = message.get("tool_calls") or []
        if calls and needs.content_apart and message["content"]:
            out.append({name: value for name, value in message.items() if name != "tool_calls"})
            message = {"role": message["role"], "content": empty, "tool_calls": calls}
        if not needs.one_call or len(calls) < 2:
            out.append(message)
            continue
        results: list[Message] = []
        while i < len(messages) and messages[i]["role"] == "tool":
            results.append(messages[i])
            i += 1
        out += _one_by_one(message, {"role": message["role"], "content": empty}, results)
    return out


def _one_by_one(message: Message, empty: Message, results: list[Message]) -> list[Message]:
    """Each call in a message of its own, before its result; the later ones' say nothing else."""
    own: dict[str, list[Message]] = {str(call.get("id")): [] for call in message["tool_calls"]}
    others: list[Message] = []
    for result in results:
        own.get(str(result.get("tool_call_id")), others).append(result)
    out: list[Message] = []
    for k, call in enumerate(message["tool_calls"]):
        out += [{**(empty if k else message), "tool_calls": [call]}, *own.pop(str(call.get("id")), [])]
    return out + others


def _with_short_ids(message: Message) -> Message:
    out = dict(message)
    if out.get("tool_calls"):
        out["tool_calls"] = [{**call, "id": _short_id(call.get("id"))} for call in out["tool_calls"]]
    if out["role"] == "tool":
        out["tool_call_id"] = _short_id(out.get("tool_call_id"))
    return out


def _short_id(call_id: object) -> str:
    """Nine letters and digits: the same for the same id, also in the next turn."""
    text = str(call_id)
    if len(text) == SHORT_ID_CHARS and text.isascii() and text.isalnum():
        return text
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:SHORT_ID_CHARS]
