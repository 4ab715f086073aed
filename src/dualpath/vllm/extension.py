"""What vLLM's worker can be asked beside its own calls (``--worker-extension-cls``): to change its model's weights."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from vllm.distributed.kv_transfer import get_kv_transfer_group

from dualpath.core.weights import Weights
from dualpath.vllm import compat
from dualpath.vllm.connector import DualPathConnector

_log = logging.getLogger(__name__)


class WorkerExtension:
    """A part of the worker's own class. vLLM's thread."""

    vllm_config: Any
    reload_weights: Any

    def dualpath_check_weights(self) -> str | None:
        """What is wrong."""
        if not compat.can_reload(self.vllm_config):
            return f"--load-format {self.vllm_config.load_config.load_format}: vLLM cannot load weights again with it"
        return None

    def dualpath_changes_kv(self, told: str) -> bool:
        return _connector().changes_kv(msgspec.json.decode(told, type=Weights))

    def dualpath_change_weights(self, told: str) -> str | None:
        """Why that was not done."""
        try:
            weights = msgspec.json.decode(told, type=Weights)
            _connector().change_weights(weights, lambda path: self.reload_weights(weights_path=path))
        except Exception as error:
            _log.warning("the weights have not been changed: %r", error)
            return str(error) or type(error).__name__
        return None

    def dualpath_end(self, why: str) -> None:
        """This worker has the next weights, or another one of its server's has: nothing of theirs may be computed."""
        _connector().end_for_weights(why)


def _connector() -> DualPathConnector:
    connector = get_kv_transfer_group()
    assert isinstance(connector, DualPathConnector)
    return connector
