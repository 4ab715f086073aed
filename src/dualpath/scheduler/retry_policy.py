"""How often, how soon and for how long a request that failed is tried again.

An engine's own fault uses up one of ``max_retries``; a path that is broken between two engines, or an engine that has
gone, costs time only: ``retry_budget_s`` from the first failure on. Time spent waiting for engines does not count, the
queue has a bound of its own. Whatever brings the request further makes up for what it took before; but what two engines
moved between them is right only when it has been decoded, so the token before that makes up for no such failure.
"""

from __future__ import annotations

from dualpath.core.errors import (
    DualPathError,
    EngineGoneError,
    EngineSilentError,
    KvCorruptError,
    PathBrokenError,
    PreemptedError,
    RequeuedError,
)
from dualpath.core.runtime import Runtime
from dualpath.scheduler.backoff import Backoff
from dualpath.scheduler.config import SchedulerConfig

_NO_FAULT = (PathBrokenError, KvCorruptError, EngineSilentError, EngineGoneError)
_BETWEEN_ENGINES = (PathBrokenError, KvCorruptError)
_LOSSES = (EngineSilentError, EngineGoneError)
_RECOMPUTE_AFTER = 2  # failures between engines: once could be chance
_SUSPECT_AFTER = 2  # engines lost with the request on them: it may be why
_MAX_DEATHS = 6  # of a suspect's engines, beside the first and the last: eight in a row are hardly chance


def is_fault(cause: DualPathError) -> bool:
    """Whether the engine that raised it is at fault, and not what lies between two, its host, or nobody."""
    return not isinstance(cause, (*_NO_FAULT, PreemptedError))


def is_between_engines(cause: DualPathError) -> bool:
    """What two engines moved between them did not arrive, or not as it was: either may be at fault, or neither."""
    return isinstance(cause, _BETWEEN_ENGINES)


class Retries:
    """One request's. Event loop only."""

    def __init__(self, config: SchedulerConfig, runtime: Runtime) -> None:
        self._config, self._runtime = config, runtime
        self._backoff = Backoff(config, runtime)
        self._has_failed = False
        self._since_s: float | None = None  # the first failure that nothing has made up for
        self._num_failures = 0  # since then
        self._num_faults = 0  # since the last token
        # Since the last token of a decode engine: a request that ends engines, or whose KV is damaged, gets none.
        self._num_between = self._num_losses = self._num_deaths = 0

    def failed(self, cause: DualPathError) -> bool:
        """An attempt has failed. False: it was the last."""
        if isinstance(cause, PreemptedError | RequeuedError):  # the first has brought a token at least
            return True
        self._has_failed = True
        if self._since_s is None:
            self._since_s = self._runtime.now_s()
        self._num_failures += 1
        self._num_faults += is_fault(cause)
        self._num_between += is_between_engines(cause)
        self._num_losses += isinstance(cause, _LOSSES)
        # What fails slowly is tried as often as what fails at once.
        is_late = self._runtime.now_s() - self._since_s > self._config.retry_budget_s
        is_spent = is_late and self._num_failures > self._config.max_retries
        ends_engines = isinstance(cause, _LOSSES) and self._num_deaths >= _MAX_DEATHS
        return not is_spent and not ends_engines and self._num_faults <= self._config.max_retries

    @property
    def recomputes(self) -> bool:
        """What engines move between them keeps failing: the fewer bytes the better."""
        return self._num_between >= _RECOMPUTE_AFTER

    @property
    def num_losses(self) -> int:
        """Engines that were lost with the request on them, one after the other."""
        return self._num_losses

    @property
    def is_suspect(self) -> bool:
        """It may be what ends engines. More likely it is not: it is served, when the last engine's fate is known."""
        return self._num_losses >= _SUSPECT_AFTER

    def engine_died(self) -> None:
        """The process of an engine that was lost has ended: it was not the line to it."""
        self._num_deaths += 1

    def pause_s(self) -> float:
        """Before the next attempt."""
        return self._backoff.next_s() if self._num_failures else 0.0

    def waited(self, seconds: float) -> None:
        """For engines: that was no attempt."""
        if self._since_s is not None:
            self._since_s += seconds

    def further(self) -> None:
        """The request has come to a phase where it never was."""
        self._since_s, self._num_failures = None, 0
        self._backoff.reset()

    def token(self, *, is_decoded: bool) -> None:
        """The client has got one more token, from the prefill engine or the decode engine."""
        if not self._has_failed:
            return  # nothing to make up for
        self._num_faults = 0
        if is_decoded:
            self._num_between = self._num_losses = self._num_deaths = 0
        if not self._num_between:
            self.further()
