"""A bucket's directory over obstore: list, look up, read a header, delete, each with a deadline and one-line errors.

Thread-safe; every call blocks, at most about ``timeout_s`` for each request that it makes. Nothing is retried here: who
asks has another path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store as Client

from dualpath.core.errors import BlockMissingError, ConfigError, StoreError, StoreFullError
from dualpath.store.s3.settings import S3Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config

CONNECT_TIMEOUT_S = 3.0
_FULL = (
    r"status code: 507|<Code>\w*(QuotaExceeded|StorageFull|InsufficientStorage)\w*</Code>"  # Ceph, MinIO, WebDAV-like
)
_LISTING_CHUNK = 1000  # what S3 gives in one page


@dataclass(frozen=True, slots=True)
class Found:
    """An object: its name in the bucket."""

    name: str
    num_bytes: int
    modified_unix_s: float


class Bucket:
    """One bucket. Raises ConfigError where the settings make no client."""

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        self._has_ranges = True  # until the server answers a range with the whole
        timeout = timedelta(seconds=settings.timeout_s)
        client: ClientConfig = {
            "allow_http": settings.endpoint.startswith("http:"),
            "timeout": timeout,
            "connect_timeout": min(timeout, timedelta(seconds=CONNECT_TIMEOUT_S)),
        }
        try:
            if settings.ca_bundle:
                client["root_certificate"] = Path(settings.ca_bundle).read_bytes()
            self.client = Client(
                settings.bucket,
                config=_config(settings),
                client_options=client,
                retry_config={"max_retries": 0, "retry_timeout": timeout},
            )
        except OSError as error:
            raise ConfigError(f"AWS_CA_BUNDLE: cannot read {settings.ca_bundle}: {error.strerror}") from error
        except (BaseError, ValueError) as error:
            raise ConfigError(f"{settings.url}: {_first_line(error)}") from None

    def check(self) -> None:
        """Find out whether the bucket is there and we may list it. Raises ConfigError."""
        try:
            next(iter(obstore.list(self.client, prefix=self.below_prefix("") or None, chunk_size=1)), None)
        except Exception as error:
            raise ConfigError(f"{self.settings.url}: {self.explain(error)}") from None

    def below_prefix(self, name: str) -> str:
        """The name in the bucket of what is at ``name`` below the URL's prefix."""
        return "/".join(part for part in (self.settings.prefix, name) if part)

    def list(self, folder: str = "") -> Iterator[Found]:
        """All objects below ``folder``, itself below the URL's prefix. Raises StoreError."""
        try:
            for page in obstore.list(self.client, prefix=self.below_prefix(folder) or None, chunk_size=_LISTING_CHUNK):
                for meta in page:
                    yield Found(meta["path"], meta["size"], meta["last_modified"].timestamp())
        except BaseError as error:
            raise StoreError(f"cannot list {self.settings.url}: {self.explain(error)}") from None

    def num_bytes(self, name: str) -> int:
        """An object's size. Raises BlockMissingError or StoreError."""
        try:
            return int(obstore.head(self.client, name)["size"])
        except (BaseError, OSError) as error:
            raise self._error(name, error) from None

    def read(self, name: str, num_bytes: int | None = None) -> bytes:
        """An object, or its first ``num_bytes`` (all, if it has fewer). Raises BlockMissingError or StoreError."""
        try:
            if num_bytes is None:
                return bytes(obstore.get(self.client, name).bytes())
            return self._read_start(name, num_bytes)
        except (BaseError, OSError) as error:
            raise self._error(name, error) from None

    def write(self, name: str, data: bytes) -> None:
        """One PUT. Raises StoreFullError where the server says that there is no room, or StoreError."""
        try:
            obstore.put(self.client, name, data, use_multipart=False)
        except (BaseError, OSError) as error:
            kind = StoreFullError if re.search(_FULL, str(error)) else StoreError
            raise kind(f"{name}: {self.explain(error)}") from None

    def delete(self, name: str) -> None:
        """Absent is fine. Raises StoreError."""
        try:
            obstore.delete(self.client, name)
        except FileNotFoundError:
            pass
        except (BaseError, OSError) as error:
            raise self._error(name, error) from None

    def explain(self, error: Exception) -> str:
        """What went wrong, in words that name the setting to look at."""
        text, where = str(error), self.settings.where
        if "NoSuchBucket" in text:
            return f"there is no bucket {self.settings.bucket} at {where}"
        status = re.search(r"status code: (\d+)", text)
        code = re.search(r"<Code>(\w+)</Code>", text)
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or (status and status[1] in ("401", "403")):
            return f"{where} refuses our credentials{f' ({code[1]})' if code else ''}"
        if status:
            return f"{where} answers with HTTP status {status[1]}{f' ({code[1]})' if code else ''}"
        if "timed out" in text or "TimedOut" in text:
            return f"{where} does not answer within {self.settings.timeout_s:g} s"
        if "error sending request" in text or "HTTP error" in text:
            return f"cannot connect to {where}"
        return _first_line(error)

    def _read_start(self, name: str, num_bytes: int) -> bytes:
        """By a range; from a server that ignores ranges, by the beginning of the whole object."""
        if self._has_ranges:
            try:
                return bytes(obstore.get(self.client, name, options={"range": (0, num_bytes)}).bytes())
            except FileNotFoundError:
                raise
            except BaseError as error:
                if "non-partial" in str(error):
                    self._has_ranges = False
        head = b""
        for chunk in obstore.get(self.client, name).stream(min_chunk_size=num_bytes):
            head += bytes(chunk)
            if len(head) >= num_bytes:
                break
        return head[:num_bytes]

    def _error(self, name: str, error: Exception) -> StoreError:
        if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
            return BlockMissingError(f"{name} is not stored")
        return StoreError(f"{name}: {self.explain(error)}")


def _config(settings: S3Settings) -> S3Config:
    config: S3Config = {"region": settings.region, "virtual_hosted_style_request": settings.is_virtual_hosted}
    if settings.endpoint:
        parts = urlsplit(settings.endpoint)
        host = f"{settings.bucket}.{parts.netloc}" if settings.is_virtual_hosted else parts.netloc
        config["endpoint"] = f"{parts.scheme}://{host}"
    if settings.credentials is not None:
        config["access_key_id"] = settings.credentials.access_key
        config["secret_access_key"] = settings.credentials.secret_key
        if settings.credentials.session_token:
            config["session_token"] = settings.credentials.session_token
    return config


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [repr(error)])[0]
