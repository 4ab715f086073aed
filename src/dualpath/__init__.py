"""DualPath: prefill/decode-disaggregated LLM inference in which every node's storage NIC works for every request."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_LAZY = {"Cluster": "dualpath.serving.api"}  # brings torch with it, so it is imported when somebody asks for it


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
