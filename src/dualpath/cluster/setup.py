"""What every process of ours sets: no downloads, quiet libraries, a format of log lines, short garbage collections."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable

from dualpath.config import ServeConfig

Progress = Callable[[str], None]  # takes lines for people


def set_up_process(config: ServeConfig) -> None:
    quiet_process()
    logging.getLogger("dualpath").setLevel(config.observe.log_level.upper())


def quiet_process() -> None:
    """Before transformers is imported."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are local directories; nothing is ever fetched
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # our own lines say how far we are
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def keep_loaded() -> None:
    """What is loaded by now stays as long as the process: no garbage collection walks it any more.

    Modules of torch and transformers alone are 400,000 objects, the index of a million blocks a million more. To walk
    them takes 0.4 to 2 s, in which the event loop serves nobody.
    """
    gc.collect()
    gc.freeze()
