"""Reasoning that a client carries without reading it: what it thought, the model sees again at the next turn.

Clients that keep no state at the server ask for ``encrypted_content`` and send that back, and drop the text. It is not
encrypted here: it is the client's own.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

_PREFIX = "dualpath:"


def seal(text: str) -> str:
    return _PREFIX + base64.urlsafe_b64encode(text.encode("utf-8", "replace")).decode()


def reasoning_of(item: dict[str, Any]) -> str:
    """What a reasoning item says; nothing where it is sealed by somebody else."""
    text = _texts(item.get("content"))
    sealed = item.get("encrypted_content")
    if not text and isinstance(sealed, str) and sealed.startswith(_PREFIX):
        try:
            return base64.b64decode(sealed.removeprefix(_PREFIX), b"-_", validate=True).decode()
        except (binascii.Error, UnicodeError, ValueError):
            return ""
    return text or _texts(item.get("summary"))


def _texts(parts: object) -> str:
    items = parts if isinstance(parts, list) else []
    texts = [part.get("text") for part in items if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))
