"""Rewrites messages in roles that a chat template does not take into roles that it does."""

from __future__ import annotations

from typing import Any

from dualpath.gateway.text.template import TemplateNeeds

Message = dict[str, Any]


def fit_roles(messages: list[Message], needs: TemplateNeeds) -> list[Message]:
    """What stands before a message decides what becomes of it, so that a longer conversation begins as a shorter one
    did."""
    out: list[Message] = []
    for message in messages:
        role = message["role"]
        if role == "developer" and not needs.names_developer:
            role = "system"
            if out and out[-1]["role"] == "system":  # templates take one
                out[-1] = _joined(out[-1], message)
                continue
        if role == "system" and not (needs.system_later if out else needs.system_first):
            if out and out[-1]["role"] == "system":
                out[-1] = _joined(out[-1], message)
                continue
            role = "user"
        if role == "user" and not needs.users_in_a_row and out and out[-1]["role"] == "user":
            out[-1] = _joined(out[-1], message)
            continue
        out.append(message if role == message["role"] else {**message, "role": role})
    return out


def _joined(first: Message, second: Message) -> Message:
    return {**first, "content": f"{first['content']}\n\n{second['content']}"}
