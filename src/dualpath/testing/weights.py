"""The hash model's weights by version."""

from __future__ import annotations

BROKEN = "broken"  # weights that cannot be loaded


def weights_of(version: str) -> str:
    """A trainer's version has their name before its number; the start's is 0."""
    return "" if version == "0" else version.partition("@")[0]
