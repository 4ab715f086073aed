"""Rewrites messages that a chat template does not take, in roles or in calls, into such as it does."""

from __future__ import annotations

import hashlib
from typing import Any

from dualpath.gateway.text.template import TemplateNeeds

Message = dict[str, Any]
_INSTRUCT = ("system", "developer")
_REASONING = ("reasoning_content", "reasoning", "thinking")
SHORT_ID_CHARS = 9
NO_RESULT = "[no result]"


def fit_roles(messages: list[Message], needs: TemplateNeeds) -> list[Message]:
    """What stands before a message decides what becomes of it, so that a longer conversation begins as a shorter one
    did."""
    out: list[Message] = []
    for message in messages:
        role = message["role"]
        if role == "assistant":
            if message is messages[-1] or needs.empty_assistants or message["content"] or message.get("tool_calls"):
                _add_answer(out, message, needs)
            continue
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
        if role == "user" and out and out[-1].get("tool_calls") and not needs.users_after_calls:
            out += _no_results(out[-1])
        last = out[-1]["role"] if out else None
        joins = (last == "user" and not needs.users_in_a_row) or (last == "tool" and not needs.users_after_results)
        if role == "user" and joins:
            out[-1] = _joined(out[-1], message)
            continue
        out.append(message if role == message["role"] else {**message, "role": role})
    return out


def _add_answer(out: list[Message], message: Message, needs: TemplateNeeds) -> None:
    last = out[-1] if out and out[-1]["role"] == "assistant" else None
    if last is None or needs.assistants_in_a_row:
        out.append(message)
        return
    out[-1] = last | message
    for name in ("content", *_REASONING):
        if last.get(name) or message.get(name):
            out[-1][name] = "\n\n".join(filter(None, (last.get(name), message.get(name))))
    if last.get("tool_calls"):
        out[-1]["tool_calls"] = last["tool_calls"] + (message.get("tool_calls") or [])


def _no_results(message: Message) -> list[Message]:
    """What stands for the results of calls that were broken off."""
    return [
        {"role": "tool", "tool_call_id": call.get("id"), "name": call["function"]["name"], "content": NO_RESULT}
        for call in message["tool_calls"]
    ]


def _joined(first: Message, second: Message) -> Message:
    return {**first, "content": f"{first['content']}\n\n{second['content']}"}


def fit_calls(messages: list[Message], needs: TemplateNeeds) -> list[Message]:
    """Calls with their results, in the form and order that the template takes."""
    messages = _with_ids(messages)
    if needs.short_call_ids:
        messages = [_with_short_ids(message) for message in messages]
    empty = None if needs.calls_without_content else ""
    out: list[Message] = []
    i = 0
    while i < len(messages):
        message, i = messages[i], i + 1
        calls = message.get("tool_calls") or []
        if calls and needs.content_apart and message["content"]:
            thoughts = {name: message[name] for name in _REASONING if name in message and needs.thinks_at_calls}
            out.append({name: value for name, value in message.items() if name not in ("tool_calls", *thoughts)})
            message = {"role": message["role"], "content": empty, "tool_calls": calls, **thoughts}
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


def fit_answers(messages: list[Message], needs: TemplateNeeds) -> list[Message]:
    """Answers as the template shows them as the model wrote them; the last step, as content is text before it."""
    return [_fit_answer(message, needs) if message["role"] == "assistant" else message for message in messages]


def _fit_answer(message: Message, needs: TemplateNeeds) -> Message:
    """Without the line breaks that the template writes itself, and with reasoning where it is read."""
    out = dict(message)
    for name in _REASONING:
        if isinstance(out.get(name), str):
            out[name] = out[name].removeprefix(needs.thought_edges[0]).removesuffix(needs.thought_edges[1])
    reasoning, content = out.get("reasoning_content"), out.get("content")
    if content and reasoning:
        content = content.removeprefix(needs.said_edges[0])
    if content and out.get("tool_calls"):  # the last line break before a call has not been content
        content = content.removesuffix(needs.said_edges[1][1:])
    out["content"] = content
    if reasoning and needs.thinks_in_parts:
        said = [{"type": "text", "text": content}] if content else []
        out["content"] = [{"type": "thinking", "thinking": reasoning}, *said]
    return out


def _with_ids(messages: list[Message]) -> list[Message]:
    """Calls have ids, and results those of the calls that they are of: in their order, where nobody says it."""
    out: list[Message] = list(messages)
    waiting: list[str] = []
    for i, message in enumerate(messages):
        if calls := message.get("tool_calls"):
            waiting = [str(call.get("id") or f"call_{i}_{k}") for k, call in enumerate(calls)]
            named = zip(calls, waiting, strict=True)
            out[i] = {
                **message,
                "tool_calls": [call if call.get("id") else {**call, "id": name} for call, name in named],
            }
        elif message["role"] == "tool":
            call_id = message.get("tool_call_id")
            if not call_id and waiting:
                out[i] = {**message, "tool_call_id": waiting.pop(0)}
            elif call_id in waiting:
                waiting.remove(str(call_id))
    return out


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
