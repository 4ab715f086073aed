"""One place that finds NIXL: whichever wheel is installed, quiet, and with the settings that suit us.

The wheels ``nixl``, ``nixl_cu12`` and ``nixl_cu13`` carry the same binding under different names, and all of them
work without a GPU. Agents are not thread-safe: one thread per agent. No progress thread, which would cost half a core
per idle agent; whoever owns the agent polls.

The POSIX backend gets io_uring where the kernel allows it (containers often do not) and libaio elsewhere. Throughput
is equal within noise, 6-8 GB/s from the page cache. libaio does a buffered file's whole I/O inside the post, so stores
do without it (dualpath.store.files.plain_io); io_uring does so only for reads that the page cache can serve. POSIX AIO,
which NIXL offers as well, must not be used: in nixl 1.5 one failing transfer fails every other one in flight, while
their bytes are still arriving (measured: 32 of 32).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from dualpath.core.errors import ConfigError

Agent = Any  # nixl_agent: the binding is untyped

_MODULES = ("nixl._api", "nixl_cu12._api", "nixl_cu13._api")
_DEFAULT_PARAMS: Mapping[str, Sequence[Mapping[str, str]]] = {"POSIX": ({"use_uring": "true"}, {"use_aio": "true"})}


@cache
def nixl_api() -> ModuleType:
    """The binding's ``_api`` module. Raises ConfigError where no wheel is installed or none can be loaded.

    NIXL logs every failed transfer to standard output unless NIXL_LOG_LEVEL was set before it is loaded: failures are
    reported by whoever meets them.
    """
    os.environ.setdefault("NIXL_LOG_LEVEL", "FATAL")
    reasons = []
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reasons.append(f"{name}: {error}")
    raise ConfigError(f"NIXL is not usable; install nixl-cu12 or nixl-cu13 ({'; '.join(reasons)})")


def build_agent(
    name: str, backends: Sequence[str] = ("POSIX",), params: Mapping[str, Mapping[str, str]] | None = None
) -> Agent:
    """An agent with these backends. ``params`` by backend replaces the defaults. Register memory after this."""
    api = nixl_api()
    agent = api.nixl_agent(name, api.nixl_agent_config(enable_prog_thread=False, backends=[]))
    for backend in backends:
        ensure_backend(agent, backend, None if params is None else params.get(backend))
    return agent


@cache
def installed_backends() -> tuple[str, ...]:
    """Names of the backends that this NIXL has plugins for, its own and those in ``NIXL_PLUGIN_DIR``."""
    return tuple(build_agent("backends", ()).get_plugin_list())


def has_uring(agent: Agent) -> bool:
    """Have the POSIX backend work by io_uring. False: this kernel, or what ``agent`` has already, does not."""
    try:
        ensure_backend(agent, "POSIX", {"use_uring": "true"})
    except ConfigError:
        return False
    return bool(agent.get_backend_params("POSIX").get("use_uring") == "true")


def ensure_backend(agent: Agent, backend: str, params: Mapping[str, str] | None = None) -> None:
    """Create the backend in ``agent`` if it is not there yet. Raises ConfigError where this NIXL cannot."""
    if backend in agent.backends:
        return
    if backend not in agent.get_plugin_list():
        raise ConfigError(f"this NIXL has no {backend} backend; it has {', '.join(agent.get_plugin_list())}")
    reason: Exception | None = None
    for candidate in _DEFAULT_PARAMS.get(backend, ({},)) if params is None else (params,):
        try:
            agent.create_backend(backend, dict(candidate))
            return
        except Exception as error:  # the binding's exceptions share no public base class
            reason = error
    raise ConfigError(f"NIXL cannot start its {backend} backend: {reason!r}") from reason
