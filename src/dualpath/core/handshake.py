"""Both ends of a connection prove that they know the same secret, before anything else that comes over it is read.

Challenge and response by HMAC-SHA256 over a nonce of each end; the secret never crosses, and no proof is good twice.
The listener speaks first: ``challenge``, ``response``, ``confirmation``, each of a fixed size. What follows is neither
encrypted nor signed: it is as safe as the network.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from collections.abc import Mapping

from dualpath.core.errors import ConfigError

_MAGIC = b"dualpth1"
_NONCE_BYTES = _PROOF_BYTES = 32
CHALLENGE_BYTES = len(_MAGIC) + _NONCE_BYTES
RESPONSE_BYTES = _NONCE_BYTES + _PROOF_BYTES
CONFIRMATION_BYTES = _PROOF_BYTES
_MIN_SECRET_BYTES = 16
SECRET_VARIABLE, FILE_VARIABLE = "DUALPATH_SECRET", "DUALPATH_SECRET_FILE"


def challenge() -> bytes:
    return _MAGIC + os.urandom(_NONCE_BYTES)


def respond(secret: bytes, asked: bytes) -> bytes | None:
    """To a challenge; None where that is none."""
    if len(asked) != CHALLENGE_BYTES or not asked.startswith(_MAGIC):
        return None
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + _proof(secret, b"connects", asked, nonce)


def confirm(secret: bytes, asked: bytes, response: bytes) -> bytes | None:
    """The listener's proof in return; None where the response is wrong."""
    nonce, proof = response[:_NONCE_BYTES], response[_NONCE_BYTES:]
    if not hmac.compare_digest(proof, _proof(secret, b"connects", asked, nonce)):
        return None
    return _proof(secret, b"listens", asked, nonce)


def is_confirmed(secret: bytes, asked: bytes, response: bytes, confirmation: bytes) -> bool:
    return hmac.compare_digest(confirmation, _proof(secret, b"listens", asked, response[:_NONCE_BYTES]))


def _proof(secret: bytes, role: bytes, asked: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, role + asked + nonce, hashlib.sha256)


def door_key(secret: bytes) -> str:
    """What is sent along with a question by HTTP, where there is no handshake: it does not tell the secret."""
    return hmac.digest(secret, b"door", hashlib.sha256).hex()


def read_secret(environment: Mapping[str, str]) -> bytes:
    """What an operator gives both ends: in a variable, or in a file that only its owner can read."""
    secret = environment.get(SECRET_VARIABLE, "").encode()
    if not secret and (path := environment.get(FILE_VARIABLE)):
        try:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o077:
                    raise ConfigError(f"{FILE_VARIABLE}: others can read {path}; chmod 600 it")
                secret = file.read().strip()
        except OSError as error:
            raise ConfigError(f"{FILE_VARIABLE}: cannot read {path}: {error.strerror or error}") from None
    if len(secret) < _MIN_SECRET_BYTES:
        raise ConfigError(
            f"both ends need the same secret of at least {_MIN_SECRET_BYTES} bytes, in {SECRET_VARIABLE} or in a file "
            f"that {FILE_VARIABLE} names; openssl rand -hex 32 makes one"
        )
    return secret


class Refusals:
    """Counts connections that did not know the secret; logs the first, second, fourth, eighth, ... of them."""

    def __init__(self, logger: logging.Logger, place: str) -> None:
        self._logger, self._place = logger, place
        self.count = 0

    def add(self, whose: object) -> None:
        self.count += 1
        if self.count & (self.count - 1) == 0:
            self._logger.warning(
                "%s: refused %d connections so far without the right secret, this one from %s",
                self._place,
                self.count,
                whose,
            )
