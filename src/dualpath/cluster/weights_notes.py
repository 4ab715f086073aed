"""Says in the store, every minute, which weights' blocks this server uses: ``dualpath store gc`` leaves them alone."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dualpath.core.errors import DualPathError
from dualpath.core.keys import Namespace
from dualpath.core.runtime import Runtime
from dualpath.core.weights import WeightEpoch
from dualpath.store.directory_calls import DirectoryCalls
from dualpath.store.folder import Folder
from dualpath.store.open import open_folder
from dualpath.store.weights_note import WRITTEN_EVERY_S, WeightsNote

_log = logging.getLogger(__name__)

_LOOK_S = 1.0  # whether the weights have changed


class WeightsNotes:
    """Event loop only; ``run`` until it is cancelled. What storage refuses is said once and tried again."""

    def __init__(
        self,
        url: str,
        model: str,
        start_directory: str,
        namespace: Namespace,
        epoch: Callable[[], WeightEpoch],
        runtime: Runtime,
    ) -> None:
        """``namespace``: of any weights of the model. ``epoch``: those that new requests get."""
        self._url, self._model, self._start_directory = url, model, start_directory
        self._namespace, self._epoch, self._runtime = namespace, epoch, runtime
        self._folder: Folder | None = None
        self._has_failed = False

    async def run(self) -> None:
        calls = DirectoryCalls(self._runtime)
        noted, due_s = None, 0.0
        while True:
            epoch = self._epoch()
            if epoch != noted or self._runtime.now_s() >= due_s:
                noted, due_s = epoch, self._runtime.now_s() + WRITTEN_EVERY_S
                try:
                    await calls.call(self._write, epoch)
                    self._has_failed = False
                except DualPathError as error:
                    self._warn(error)
            await self._runtime.sleep_s(_LOOK_S)

    def _write(self, epoch: WeightEpoch) -> None:
        if self._folder is None:
            self._folder = open_folder(self._url)
        weights = epoch.weights
        directory = weights.directory if weights.number else self._start_directory
        namespace = epoch.namespace(self._namespace)
        whole = namespace.digest.hex() if namespace.num_ranks > 1 else ""
        note = WeightsNote(self._model, weights.version, directory, self._runtime.unix_s(), whole)
        for part in namespace.parts():
            self._folder.write_note(part.digest, note)

    def _warn(self, error: DualPathError) -> None:
        if not self._has_failed:
            _log.warning("cannot say in the store that its blocks are used: %s", error)
        self._has_failed = True
