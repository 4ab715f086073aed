"""What every process of ours sets before it loads a model: no downloads, quiet libraries, one format of log lines."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from dualpath.config import ServeConfig

Progress = Callable[[str], None]  # takes lines for people


def set_up_process(config: ServeConfig) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are local directories; nothing is ever fetched
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # our own lines say how far we are
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("dualpath").setLevel(config.observe.log_level.upper())
