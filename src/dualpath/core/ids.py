"""Opaque identifiers: made in one place each, compared and hashed everywhere, never taken apart."""

from __future__ import annotations

from typing import NewType

RequestId = NewType("RequestId", str)
EngineId = NewType("EngineId", str)  # unique in a cluster; stays when the engine is started again
PeerId = NewType("PeerId", str)  # one incarnation of an engine: its transfer agent's name, never used again
NodeId = NewType("NodeId", str)
BlockKey = NewType("BlockKey", bytes)  # 16 bytes, see dualpath.core.keys


def peer_id(engine_id: EngineId, incarnation: str) -> PeerId:
    """The name of an engine's memory for as long as it lives: whoever means a former one meets nobody."""
    return PeerId(f"{engine_id}.{incarnation}")
