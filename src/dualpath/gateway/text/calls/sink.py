"""Where every grammar puts the calls that it has read: one place decides what arguments may look like."""

from __future__ import annotations

import re
import uuid

from dualpath.gateway.errors import encodable
from dualpath.gateway.text.json_text import string_value
from dualpath.gateway.text.pieces import CallDelta, Piece

NO_ARGUMENTS = "{}"
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class CallSink:
    """``out``: pieces in order, content and reasoning among them, until somebody takes them."""

    def __init__(self, max_calls: int | None = None) -> None:
        """``max_calls``: later ones are read, but not passed on."""
        self.num_calls = 0
        self.out: list[Piece] = []
        self._max_calls = max_calls
        self._ids: set[str] = set()

    def begin(self, name: str, call_id: str = "") -> None:
        """A call whose arguments follow in pieces, as the model writes them. ``call_id``: as the model wrote it, for
        its chat template will show it again."""
        self.num_calls += 1
        if not _ID.fullmatch(call_id) or call_id in self._ids:
            call_id = f"call_{uuid.uuid4().hex[:24]}"
        self._ids.add(call_id)
        self._add(CallDelta(self.num_calls - 1, call_id, encodable(name), ""))

    def arguments(self, text: str) -> None:
        if text:
            self._add(CallDelta(self.num_calls - 1, None, None, encodable(text)))

    def whole(self, name: str, arguments: str | None, call_id: str = "") -> None:
        """A call whose arguments are known: JSON, or a JSON string that holds it. Null, empty and none: no arguments,
        which is an empty object."""
        text = (arguments or "").strip()
        if text.startswith('"'):
            text = string_value(text) or ""
        self.begin(name, call_id)
        self.arguments(NO_ARGUMENTS if text.strip() in ("", "null") else text)

    def _add(self, delta: CallDelta) -> None:
        if self._max_calls is None or self.num_calls <= self._max_calls:
            self.out.append(delta)
