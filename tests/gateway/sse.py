"""Server-sent events read as a client reads them."""

from __future__ import annotations

import json
from typing import Any


def events_of(stream: str | bytes) -> list[dict[str, Any]]:
    """Their data, where it is JSON; the event's name, where it has one, must be the data's type."""
    events = []
    for block in (stream if isinstance(stream, str) else stream.decode()).split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields.get("data", "").startswith("{"):
            data: dict[str, Any] = json.loads(fields["data"])
            assert fields.get("event", data.get("type")) == data.get("type")
            events.append(data)
    return events
