"""Opaque identifiers: made in one place each, compared and hashed everywhere, never taken apart."""

from __future__ import annotations

from typing import NewType

RequestId = NewType("RequestId", str)
EngineId = NewType("EngineId", str)  # also the name of the engine's transfer agent; unique in a cluster
NodeId = NewType("NodeId", str)
BlockKey = NewType("BlockKey", bytes)  # 16 bytes, see dualpath.core.keys
