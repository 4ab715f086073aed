"""The newest output items, for clients that refer to one by its id instead of sending it again.

A help, not a store: what it holds is bounded, and gone at the end of the process. Whoever says ``store: false`` sends
items whole, and nothing of his is kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import msgspec

from dualpath.gateway.openai.shapes import encode_json

MAX_BYTES = 16 << 20


class ItemMemory:
    """Thread-safe: prompts are planned in threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._rest_bytes = max_bytes
        self._items: OrderedDict[tuple[bytes | None, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, owner: bytes | None, items: list[dict[str, Any]]) -> None:
        """``owner``: the tenant's digest; nobody else finds them."""
        with self._lock:
            for item in items:
                raw = encode_json(item)
                self._items[owner, item["id"]] = raw
                self._rest_bytes -= len(raw)
            while self._rest_bytes < 0:
                _, raw = self._items.popitem(last=False)
                self._rest_bytes += len(raw)

    def recall(self, owner: bytes | None, item_id: object) -> dict[str, Any] | None:
        with self._lock:
            raw = self._items.get((owner, item_id)) if isinstance(item_id, str) else None
        item: dict[str, Any] | None = None if raw is None else msgspec.json.decode(raw)
        return item
