"""Every error that DualPath raises on purpose; one class per thing a caller may want to tell apart."""

from __future__ import annotations


class DualPathError(Exception):
    """Base of all errors below. The message is one line that a user can act on."""


class ConfigError(DualPathError):
    """A setting is missing, malformed or out of range. CLI: one line, exit code 2."""


class UnsupportedModelError(ConfigError):
    """The model directory is unreadable or of a family that cannot be served."""


class InvalidRequestError(DualPathError):
    """The client's request is wrong (HTTP 400). ``param`` names the offending field where there is one."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class RequestAbortedError(DualPathError):
    """Somebody who controls the server has ended the request. The tokens that came before are all that there are."""


class WeightsError(DualPathError):
    """Other weights could not be loaded by every engine: all go on with those that they had."""


class OverloadedError(DualPathError):
    """The queue is full (HTTP 429); try again after ``retry_after_s``."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TransferError(DualPathError):
    """A transfer failed. Its memory may still be written: the owner keeps it until the transfer is quiescent."""


class TransferTimeoutError(TransferError):
    """A transfer passed its deadline."""


class PeerLostError(TransferError):
    """The peer of a transfer is gone."""


class KvCorruptError(TransferError):
    """A Layer Block is not as it was made: damaged on its way or in memory. Nothing was computed from it."""


class StoreError(DualPathError):
    """Storage could not be reached or refused an operation."""


class StoreFullError(StoreError):
    """Storage has no room for the block, or the quota is used up."""


class BlockMissingError(StoreError):
    """The block is not on storage."""


class BlockCorruptError(StoreError):
    """The stored object is truncated, of another geometry or namespace, or its checksum does not hold."""


class EngineLostError(DualPathError):
    """An engine dropped the request, which can be resumed elsewhere. It tells nothing of what still moves."""


class EngineGoneError(EngineLostError):
    """The engine's process has ended, and with it all that it held. Only its link can know: no engine says it."""


class EngineBugError(EngineLostError):
    """An engine raised what it must not. It may live, hold and move everything as before."""


class PathBrokenError(EngineLostError):
    """Transfers between two engines failed; both may be well. The request can be resumed once the path is mended."""


class RequeuedError(EngineLostError):
    """The scheduler took the request off its engines; it is resumed when engines compute again."""


class OtherWeightsError(RequeuedError):
    """What was ordered is for other weights than the engine has now: the request is placed again, for those in use."""


class PreemptedError(EngineLostError):
    """An engine gave the request's device memory to others. No fault of either: it is resumed as often as it takes."""


class EngineSilentError(EngineLostError):
    """An engine does not answer, and may be running all the same: what it could still write stays out of use."""


class DeadlineExceededError(DualPathError):
    """A wait passed its deadline."""
