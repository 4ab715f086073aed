"""Whose a request is. Every API key is a tenant: its cached KV and its requests are nobody else's business.

Keys are kept as digests only. A tenant's cache namespace and the ids of its requests follow from its key alone, so both
mean the same after a restart and behind every gateway, and nothing has to be remembered.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

_PERSON = b"dualpath tenant"  # sets these digests apart from all others of the same keys
_NONCE_BYTES, _TAG_BYTES = 12, 8


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who asks. ``digest`` is None where no keys are configured: then all are one."""

    digest: bytes | None = None
    is_admin: bool = True
    shares_cache: bool = True

    def cache_salt(self, asked: str) -> str:
        """What sets this request's blocks apart from others'; ``asked`` is the client's own salt, "" for none."""
        if self.digest is None or self.shares_cache:
            return asked
        return hashlib.blake2b(asked.encode(), key=self.digest, digest_size=32, person=b"dualpath salt").hexdigest()

    def new_id(self, prefix: str) -> str:
        nonce = secrets.token_hex(_NONCE_BYTES)
        return f"{prefix}-{nonce}{self._tag(nonce)}"

    @property
    def viewer(self) -> str | None:
        """What this key is called between gateways, which all have the same keys; None: it sees all requests."""
        if self.is_admin or self.digest is None:
            return None
        return hashlib.blake2b(self.digest, digest_size=_TAG_BYTES, person=b"dualpath viewer").hexdigest()

    def owns(self, request_id: str) -> bool:
        """Ids look like cmpl-NONCETAG or, for one of several choices, cmpl-NONCETAG-3."""
        _, _, rest = request_id.partition("-")
        nonce, tag = rest[: 2 * _NONCE_BYTES], rest[2 * _NONCE_BYTES :].partition("-")[0]
        return hmac.compare_digest(tag.encode(), self._tag(nonce).encode())

    def _tag(self, nonce: str) -> str:
        key = self.digest or b""
        return hashlib.blake2b(nonce.encode(), key=key, digest_size=_TAG_BYTES, person=b"dualpath request").hexdigest()


EVERYBODY = Tenant()


class Tenants:
    """Finds the tenant of a key."""

    def __init__(self, api_keys: Iterable[str], admin_keys: Iterable[str], *, share_cache: bool) -> None:
        admins = {_digest(_as_bytes(key)) for key in admin_keys}
        others = {_digest(_as_bytes(key)) for key in api_keys} - admins
        self.has_admins = bool(admins)
        self._tenants = [
            Tenant(digest, is_admin=digest in admins, shares_cache=share_cache) for digest in sorted(admins | others)
        ]
        self._viewers = {tenant.viewer: tenant for tenant in self._tenants}

    def may_see(self, viewer: str, request_id: str) -> bool:
        """``viewer``: ``Tenant.viewer``."""
        tenant = self._viewers.get(viewer)
        return tenant is not None and tenant.owns(request_id)

    def __bool__(self) -> bool:
        """Whether keys are asked for at all."""
        return bool(self._tenants)

    def find(self, key: bytes) -> Tenant | None:
        # All are compared, each in constant time: neither key nor position shows in the timing.
        given = _digest(key)
        found = [tenant for tenant in self._tenants if hmac.compare_digest(given, tenant.digest or b"")]
        return found[0] if found else None


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=32, person=_PERSON).digest()


def _as_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")
