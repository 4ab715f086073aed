"""From a URL to a store: ``file:///absolute/directory``, a plain path, ``s3://bucket/prefix``, or ``memory://name``.

A file URL takes ``?durable=true``: fsync before a write counts as done; and ``?engine=3fs``: 3FS's native I/O instead
of its FUSE mount. What an S3 URL takes: dualpath.store.s3.settings.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from dualpath.core.errors import ConfigError
from dualpath.core.geometry import KvGeometry
from dualpath.core.keys import Namespace
from dualpath.store.contract import BlockStore
from dualpath.store.files.hf3fs import File3fsStore, check_3fs
from dualpath.store.files.store import FileStore
from dualpath.store.folder import FileFolder, Folder
from dualpath.store.memory import MemoryStore
from dualpath.store.ranked import RankedStore
from dualpath.store.s3 import settings as s3_settings

ENGINES = ("posix", "3fs")


def open_store(url: str, namespace: Namespace | bytes, geometry: KvGeometry) -> BlockStore:
    """The blocks of one namespace at ``url``; a directory is created, a bucket is not. Raises ConfigError, one line,
    for anything else.
    """
    if isinstance(namespace, Namespace) and namespace.num_ranks > 1:
        return RankedStore(namespace, [open_store(url, part, part.geometry) for part in namespace.parts()])
    digest = namespace.digest if isinstance(namespace, Namespace) else namespace
    scheme, name, options = parse_url(url)
    if scheme == "memory":
        return MemoryStore(url, digest, geometry)
    if scheme == "s3":
        from dualpath.store.s3.store import S3Store  # obstore only where it is used

        return S3Store(s3_settings.resolve(url, name, options), digest, geometry)
    kind = File3fsStore if options.get("engine") == "3fs" else FileStore
    return kind(Path(name), digest, geometry, durable=options.get("durable") == "true")


def open_folder(url: str) -> Folder:
    """Raises ConfigError for a URL without one, or where there is nothing."""
    scheme, name, options = parse_url(url)
    if scheme == "s3":
        from dualpath.store.s3.folder import S3Folder  # obstore only where it is used

        return S3Folder(s3_settings.resolve(url, name, options))
    if scheme != "file":
        raise ConfigError(f"{url}: only file and s3 stores can be inspected")
    if not Path(name).is_dir():
        raise ConfigError(f"{url}: there is no such directory")
    return FileFolder(name)


def check_url(url: str) -> None:
    """Find out what makes ``open_store`` fail, short of creating anything. Raises ConfigError. May ask a server."""
    scheme, name, options = parse_url(url)
    if scheme == "s3":
        from dualpath.store.s3.bucket import Bucket

        Bucket(s3_settings.resolve(url, name, options)).check()
    elif options.get("engine") == "3fs":
        check_3fs(Path(name))


def parse_url(url: str) -> tuple[str, str, dict[str, str]]:
    """(scheme; absolute directory, memory name or bucket/prefix; options). Raises ConfigError."""
    if not url:
        raise ConfigError("the store's URL is empty; try file:///some/directory")
    if "://" not in url and not url.startswith("file:"):
        return "file", str(Path(url).expanduser().absolute()), {}
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme == "s3":
        location, shown = unquote(parts.netloc + parts.path), url.partition("?")[0]  # options may be misplaced secrets
        s3_settings.check_location(shown, location, _allow(shown, options, s3_settings.OPTIONS))
        return "s3", location, options
    if parts.scheme == "memory":
        return "memory", parts.netloc + parts.path, _allow(url, options, set())
    if parts.scheme != "file":
        raise ConfigError(f"{url}: unknown store scheme {parts.scheme!r}; known are file, s3 and memory")
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ConfigError(f"{url}: a file URL needs an absolute path, with three slashes: file:///some/directory")
    _allow(url, options, {"durable", "engine"})
    _choose(url, options, "durable", ("true", "false"))
    _choose(url, options, "engine", ENGINES)
    return "file", unquote(parts.path), options


def below(url: str, name: str) -> str:
    """The URL of a store of its own inside the one at ``url``, an ``s3://`` or ``file://`` URL, with its options."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def _allow(url: str, options: dict[str, str], known: set[str]) -> dict[str, str]:
    for name in options:
        if name not in known:
            raise ConfigError(f"{url}: unknown option {name!r}; known are: {', '.join(sorted(known)) or 'none'}")
    return options


def _choose(url: str, options: dict[str, str], name: str, choices: tuple[str, ...]) -> None:
    if options.get(name, choices[0]) not in choices:
        raise ConfigError(f"{url}: {name} must be {' or '.join(choices)}, not {options[name]!r}")
