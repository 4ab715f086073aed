"""Which weights a model has, those of the start or of an update, and which stored blocks are theirs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dualpath.core.ids import BlockKey
from dualpath.core.keys import Namespace, root_key


@dataclass(frozen=True, slots=True)
class Weights:
    """Two with the same number, version and directory are one update; its weights are told by their fingerprint."""

    number: int = 0  # of the update; 0: those of the start
    version: str = "0"  # as clients are told
    directory: str = ""  # a local model directory, by the same path on every node; of the start's nobody asks


@dataclass(frozen=True, slots=True)
class WeightEpoch:
    """The weights that requests are placed for, and with them the namespace of their blocks.

    The same weights make the same namespace, however often they come back.
    """

    weights: Weights
    fingerprint: str
    salt: str = ""  # sets blocks apart from those before the cache was flushed

    def namespace(self, like: Namespace) -> Namespace:
        """``like``: of any weights of the model."""
        return replace(like, model_fingerprint=self.fingerprint)

    def root(self, like: Namespace, cache_salt: str) -> BlockKey:
        """The parent of a tenant's first blocks."""
        return root_key(self.namespace(like), f"{self.salt}\x1f{cache_salt}" if self.salt else cache_salt)
