"""The status routes of a running server, read as what they were made of: a look at a cluster over HTTP."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TypeVar

import msgspec

from dualpath.core.errors import ConfigError
from dualpath.core.request import RecordAnswer, RequestRecord
from dualpath.core.stats import ClusterStats
from dualpath.gateway.verdict.change import ClusterLook

T = TypeVar("T")

_TIMEOUT_S = 10.0  # of one answer, all of it
_MAX_ANSWER_BYTES = 64 << 20
STATS, _REQUESTS = "/v1/dualpath/stats", "/v1/dualpath/requests?limit=1000"
_ONE_REQUEST = "/v1/dualpath/requests?request_id="
_ALL_REQUESTS = "/v1/dualpath/requests?limit=10000"
_HINTS = {401: "; give a key with --api-key", 403: "; give an admin key with --api-key"}


class _Requests(msgspec.Struct):
    data: list[RequestRecord]
    missing: tuple[str, ...] = ()
    in_phase: dict[str, int] | None = None

    def answer(self) -> RecordAnswer:
        return RecordAnswer(self.data, self.missing, self.in_phase)


def take_look(url: str, api_key: str | None) -> ClusterLook:
    """Raises ConfigError as ``ask`` does."""
    found = ask(url, _REQUESTS, api_key, _Requests).answer()
    return ClusterLook.of(time.monotonic(), ask(url, STATS, api_key, ClusterStats), found)


def recent_requests(url: str, api_key: str | None) -> RecordAnswer:
    """As many as there are, newest first. Raises ConfigError as ``ask`` does."""
    return ask(url, _ALL_REQUESTS, api_key, _Requests).answer()


def find_request(url: str, api_key: str | None, request_id: str) -> RecordAnswer:
    """That one, at whichever gateway it was. Raises ConfigError as ``ask`` does."""
    return ask(url, f"{_ONE_REQUEST}{urllib.parse.quote(request_id, safe='')}", api_key, _Requests).answer()


def ask(url: str, path: str, api_key: str | None, shape: type[T]) -> T:
    """Raises ConfigError, one line: nobody there, a key that is refused, or somebody who is no DualPath server."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url}: must begin with http:// or https://")
    try:
        request = urllib.request.Request(url + path)
        if api_key is not None:
            request.add_header("Authorization", f"Bearer {api_key}")
        return msgspec.json.decode(_body(request), type=shape)
    except urllib.error.HTTPError as error:
        with error:
            raise ConfigError(f"{url} answers {error.code} {error.reason}{_HINTS.get(error.code, '')}") from None
    except msgspec.MsgspecError:  # before ValueError, which it may be too
        raise ConfigError(f"{url} does not answer as a DualPath server does") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)  # URLError has the one beneath
        raise ConfigError(f"{url} does not answer: {reason}") from None


def _body(request: urllib.request.Request) -> bytes:
    """Raises OSError or HTTPException; also when the answer takes too long or does not end."""
    deadline_s = time.monotonic() + _TIMEOUT_S
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        parts, num_bytes = [], 0
        while part := answer.read1(1 << 16):
            parts.append(part)
            num_bytes += len(part)
            if time.monotonic() > deadline_s or num_bytes > _MAX_ANSWER_BYTES:
                raise TimeoutError(f"more than {_TIMEOUT_S:g} s or {_MAX_ANSWER_BYTES >> 20} MiB")
    return b"".join(parts)
