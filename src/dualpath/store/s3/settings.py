"""What an ``s3://`` URL means: bucket, prefix, endpoint, region, and how hard to push.

``s3://bucket/prefix?endpoint=http://host:9000&region=eu-west-1``. An option of the URL wins over the environment
(``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``AWS_DEFAULT_REGION``, ``AWS_CA_BUNDLE``), and that
over the profile in ``~/.aws``. Credentials never stand in a URL, since URLs are logged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from dualpath.core.errors import ConfigError
from dualpath.store.s3.credentials import Credentials, find_credentials, read_profile

OPTIONS = {"endpoint", "region", "addressing", "connections", "timeout_s"}
DEFAULT_REGION = "us-east-1"
DEFAULT_CONNECTIONS = 16
MAX_CONNECTIONS = 25  # the AWS SDK's default pool, which NIXL's OBJ backend does not change; more would only queue
DEFAULT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where a bucket is and how to talk to it. ``endpoint`` is empty for AWS itself."""

    bucket: str
    prefix: str  # without slashes at its ends; may be empty
    endpoint: str = ""
    region: str = DEFAULT_REGION
    is_virtual_hosted: bool = False
    connections: int = DEFAULT_CONNECTIONS  # requests under way at once, per engine
    timeout_s: float = DEFAULT_TIMEOUT_S  # of one listing page, head, delete or inquiry
    ca_bundle: str = ""
    credentials: Credentials | None = field(default=None, repr=False)  # None: instance or pod identity

    @property
    def url(self) -> str:
        """Without options, for messages."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def where(self) -> str:
        """For messages: the endpoint a user can check."""
        return self.endpoint or f"AWS {self.region}"


def resolve(
    url: str, location: str, options: Mapping[str, str], environment: Mapping[str, str] = os.environ
) -> S3Settings:
    """From a parsed URL, the environment and ``~/.aws``. Raises ConfigError, one line, naming what is wrong."""
    url = url.partition("?")[0]  # for messages
    bucket, _, prefix = location.partition("/")
    profile = read_profile(environment)
    endpoint = options.get("endpoint") or _first(environment, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    endpoint = _check_endpoint(url, (endpoint or profile.endpoint_url).rstrip("/"))
    region = options.get("region") or _first(environment, "AWS_REGION", "AWS_DEFAULT_REGION") or profile.region
    addressing = options.get("addressing") or ("path" if endpoint else "virtual")
    if addressing not in ("path", "virtual"):
        raise ConfigError(f"{url}: addressing must be path or virtual, not {addressing!r}")
    return S3Settings(
        bucket=bucket,
        prefix=prefix.strip("/"),
        endpoint=endpoint,
        region=region or DEFAULT_REGION,
        is_virtual_hosted=addressing == "virtual" and "." not in bucket,  # TLS wildcards cover one label only
        connections=int(_number(url, options, "connections", DEFAULT_CONNECTIONS, 1, MAX_CONNECTIONS)),
        timeout_s=_number(url, options, "timeout_s", DEFAULT_TIMEOUT_S, 0.1, 600.0),
        ca_bundle=_first(environment, "AWS_CA_BUNDLE"),
        credentials=find_credentials(environment, profile, is_aws=not endpoint),
    )


def check_location(url: str, location: str, options: Mapping[str, str]) -> None:
    """What a URL alone can have wrong. Raises ConfigError."""
    bucket = location.partition("/")[0]
    if "@" in bucket:
        raise ConfigError("s3 URL: credentials do not belong in a URL; use AWS_ACCESS_KEY_ID or AWS_PROFILE")
    if not 3 <= len(bucket) <= 63 or not set(bucket) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_"):
        raise ConfigError(f"{url}: {bucket!r} is not a bucket's name; try s3://bucket/prefix")
    _check_endpoint(url, options.get("endpoint", ""))
    _number(url, options, "connections", DEFAULT_CONNECTIONS, 1, MAX_CONNECTIONS)
    _number(url, options, "timeout_s", DEFAULT_TIMEOUT_S, 0.1, 600.0)


def _check_endpoint(url: str, endpoint: str) -> str:
    if endpoint:
        parts = urlsplit(endpoint)
        if "@" in endpoint:
            raise ConfigError("s3 endpoint: credentials do not belong in it; use AWS_ACCESS_KEY_ID or AWS_PROFILE")
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/") or parts.query:
            raise ConfigError(f"{url}: endpoint must be like http://host:9000, not {endpoint!r}")
    return endpoint


def _first(environment: Mapping[str, str], *names: str) -> str:
    return next((environment[name] for name in names if environment.get(name)), "")


def _number(url: str, options: Mapping[str, str], name: str, default: float, minimum: float, maximum: float) -> float:
    text = options.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not minimum <= value <= maximum or (isinstance(default, int) and value != int(value)):
        raise ConfigError(f"{url}: {name} must be a number from {minimum:g} to {maximum:g}, not {text!r}")
    return value
