"""One place that finds NIXL: whichever wheel is installed, quiet, and with the settings that suit us.

The wheels ``nixl``, ``nixl_cu12`` and ``nixl_cu13`` carry the same binding under different names, and all of them
work without a GPU. Agents are not thread-safe: one thread per agent. No progress thread, which would cost half a core
per idle agent; whoever owns the agent polls.

The POSIX backend runs POSIX AIO by default (``POSIX_PARAMS``). Measured with 128 objects of 2 MiB: posting them takes
4 ms whether the page cache is warm or cold. With libaio, NIXL's own choice, posting does the whole read of a buffered
file in the caller (30 ms warm, 320 ms cold), with io_uring 40 ms warm and 90 ms cold. Throughput is equal within
noise.
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
POSIX_PARAMS: Mapping[str, str] = {"use_posix_aio": "true"}


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
    """An agent with these backends. ``params`` by backend replaces the defaults; register memory after this."""
    api = nixl_api()
    agent = api.nixl_agent(name, api.nixl_agent_config(enable_prog_thread=False, backends=[]))
    for backend in backends:
        ensure_backend(agent, backend, None if params is None else params.get(backend))
    return agent


def ensure_backend(agent: Agent, backend: str, params: Mapping[str, str] | None = None) -> None:
    """Create the backend in ``agent`` if it is not there yet. Raises ConfigError where this NIXL cannot."""
    if backend in agent.backends:
        return
    if params is None:
        params = POSIX_PARAMS if backend == "POSIX" else {}
    if backend not in agent.get_plugin_list():
        raise ConfigError(f"this NIXL has no {backend} backend; it has {', '.join(agent.get_plugin_list())}")
    try:
        agent.create_backend(backend, dict(params))
    except Exception as error:  # the binding's exceptions share no public base class
        raise ConfigError(f"NIXL cannot start its {backend} backend: {error!r}") from error
