"""Which weights the model in a vLLM worker has, and how it gets others: by vLLM's own reload, in place.

Two do not fit beside each other there. So files are looked at first, while vLLM computes; when nothing of the two is
wrong, the model takes them while it stands still. A reload that breaks off leaves a model that vLLM itself cannot mend:
the process ends then, and whoever starts it again has the start's weights.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from dualpath.core.errors import ConfigError, OtherWeightsError
from dualpath.core.keys import Namespace
from dualpath.core.weights import Weights
from dualpath.models.updates import Signature, StartWeights, read_json_config, signature

_log = logging.getLogger(__name__)
_BROKEN = 76  # exit code
_MOST_KNOWN = 4  # those in use, the former ones, the next, and one that came to nothing


@dataclass(frozen=True, slots=True)
class _Named:
    directory: Path
    fingerprint: str
    signature: Signature


class NodeWeights:
    """``name`` on any thread, ``change`` on vLLM's."""

    def __init__(
        self,
        directory: Path,
        namespace: Namespace,
        path: str = "",
        read_config: Callable[[Path], Mapping[str, Any]] = read_json_config,
        rank: int = 0,
    ) -> None:
        """``directory`` and ``namespace`` of the start, the latter the whole server's; ``path``: the same directory as
        vLLM calls it. ``read_config``: a config.json as vLLM understands it."""
        self._start = StartWeights(directory, namespace.model_fingerprint)
        self._namespace, self._path, self._read_config, self._rank = namespace, path, read_config, rank
        self._naming = threading.Lock()
        self.current = Weights()
        self._known = {self.current: _Named(directory, namespace.model_fingerprint, signature(directory))}

    @property
    def fingerprint(self) -> str:
        return self._known[self.current].fingerprint

    def in_use(self) -> tuple[Weights, str]:
        """With their fingerprint. Any thread: ``current`` may change at any moment."""
        weights = self.current
        return weights, self._known[weights].fingerprint

    def namespace(self, weights: Weights) -> Namespace:
        """This rank's. Raises ConfigError where they have not been named."""
        return self._whole(self._find(weights)).part(self._rank)

    def own(self, digest: bytes) -> bytes:
        """This rank's namespace where the whole server's is meant; none: those of the start. Any thread.

        Raises OtherWeightsError where it is of weights that are not known here (any more).
        """
        if not digest or self._namespace.num_ranks == 1:
            return digest
        for named in list(self._known.values()):
            whole = self._whole(named)
            if whole.digest == digest:
                return whole.part(self._rank).digest
        raise OtherWeightsError("the model has other weights, and knows nothing of these")

    def _whole(self, named: _Named) -> Namespace:
        return replace(self._namespace, model_fingerprint=named.fingerprint)

    def name(self, weights: Weights) -> str:
        """Their fingerprint. Raises ConfigError where the model cannot take them, as far as files can tell.

        Files are read once, however often that is asked: for each peer of a server that has been started again.
        """
        with self._naming:
            return self._name(weights)

    def _name(self, weights: Weights) -> str:
        directory = Path(weights.directory) if weights.number else self._start.directory
        known = self._known.get(weights)
        if known is not None and directory.is_dir() and signature(directory) == known.signature:
            return known.fingerprint
        self._start.check_kind(directory, self._read_config)
        found = signature(directory)
        named = _Named(directory, self._start.fingerprint_of(directory), found)
        if signature(directory) != found:
            raise ConfigError(f"{directory}: somebody writes there: give whole directories only")
        if weights != self.current:
            self._known.pop(weights, None)
            self._known[weights] = named
            others = [known for known in self._known if known != self.current]
            for oldest in others[: max(0, len(self._known) - _MOST_KNOWN)]:
                del self._known[oldest]
        return named.fingerprint

    def changes_kv(self, weights: Weights) -> bool:
        return self._find(weights).fingerprint != self.fingerprint

    def change(self, weights: Weights, reload: Callable[[str], None]) -> None:
        """While the model stands still. Raises ConfigError where it has its former weights, still or again."""
        new, old = self._find(weights), self._known[self.current]
        if new.fingerprint != old.fingerprint:
            self._reload(new, reload)
            if signature(new.directory) != new.signature:
                self._reload(old, reload)
                if signature(old.directory) != old.signature:
                    self.end(f"{old.directory}: somebody has written there: whose weights these are nobody knows")
                raise ConfigError(f"{new.directory}: somebody writes there: give whole directories only")
        self.current = weights
        _log.info("weights %s of %s in use", weights.version, new.directory)

    def check(self, path: str) -> None:
        """``path``: what vLLM says that its weights are of. Raises ConfigError where it is not what we know."""
        if path != self._path:
            raise ConfigError(
                f"vLLM has got weights of {path} behind DualPath, whose blocks would go by the name of others: "
                "use the gateway's /update_weights"
            )

    def _reload(self, named: _Named, reload: Callable[[str], None]) -> None:
        try:
            reload(str(named.directory))
        except Exception:
            _log.exception("vLLM could not take the weights of %s", named.directory)
            self.end("a part of the model may have them, and vLLM cannot mend that")
        self._path = str(named.directory)

    def _find(self, weights: Weights) -> _Named:
        if weights not in self._known:
            raise ConfigError(f"the weights {weights.version} have not been loaded here")
        return self._known[weights]

    def end(self, why: str) -> NoReturn:
        """What the model has nobody can mend, or other ranks have other weights."""
        _log.error("%s: ending", why)
        os._exit(_BROKEN)
