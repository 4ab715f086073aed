"""Ends this process when the one that started it has ended, however that was."""

from __future__ import annotations

import os
import threading
import time

_LOOK_S = 0.5


def end_with_parent() -> None:
    """End this process, without ado, soon after its parent has ended. Call it first thing, from the main thread."""
    threading.Thread(target=_watch, args=(os.getppid(),), name="parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)
