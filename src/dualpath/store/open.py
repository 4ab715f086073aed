"""From a URL to a store: ``file:///absolute/directory``, a plain path, or ``memory://name``.

A file URL takes ``?durable=true``: fsync before a write counts as done.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from dualpath.core.errors import ConfigError
from dualpath.core.geometry import KvGeometry
from dualpath.core.keys import Namespace
from dualpath.store.contract import BlockStore
from dualpath.store.files import FileStore
from dualpath.store.memory import MemoryStore


def open_store(url: str, namespace: Namespace | bytes, geometry: KvGeometry) -> BlockStore:
    """The blocks of one namespace at ``url``; a directory is created. Raises ConfigError, one line, for anything
    else.
    """
    digest = namespace.digest if isinstance(namespace, Namespace) else namespace
    scheme, name, options = parse_url(url)
    if scheme == "memory":
        return MemoryStore(url, digest, geometry)
    return FileStore(Path(name), digest, geometry, durable=_durable(url, options))


def parse_url(url: str) -> tuple[str, str, dict[str, str]]:
    """(scheme, absolute directory or memory name, options). Raises ConfigError."""
    if not url:
        raise ConfigError("the store's URL is empty; try file:///some/directory")
    if "://" not in url and not url.startswith("file:"):
        return "file", str(Path(url).expanduser().absolute()), {}
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme == "s3":
        raise ConfigError(f"{url}: s3 stores are not in this version; use file:// on a mounted file system")
    if parts.scheme == "memory":
        return "memory", parts.netloc + parts.path, _allow(url, options, set())
    if parts.scheme != "file":
        raise ConfigError(f"{url}: unknown store scheme {parts.scheme!r}; known are file and memory")
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ConfigError(f"{url}: a file URL needs an absolute path, with three slashes: file:///some/directory")
    return "file", unquote(parts.path), _allow(url, options, {"durable"})


def _allow(url: str, options: dict[str, str], known: set[str]) -> dict[str, str]:
    for name in options:
        if name not in known:
            raise ConfigError(f"{url}: unknown option {name!r}; known are: {', '.join(sorted(known)) or 'none'}")
    return options


def _durable(url: str, options: dict[str, str]) -> bool:
    value = options.get("durable", "false")
    if value not in ("true", "false"):
        raise ConfigError(f"{url}: durable must be true or false, not {value!r}")
    return value == "true"
