"""Actors of vLLM nodes without Ray: in this process, called as Ray's handles are. Their servers are fakes."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest

from dualpath.config import NodeConfig, ServeConfig
from dualpath.ray import vllm_node, vllm_servers
from dualpath.ray.vllm_node import VllmNodeActor

NAMESPACE = f"test-{os.getpid()}"  # a system's own: what is left of it is ended by it
NODES = (NodeConfig(name="pe0", role="prefill"), NodeConfig(name="de0", role="decode"))


class RayError(Exception): ...


class ActorDiedError(RayError): ...


class ActorUnavailableError(RayError): ...


class FakeRay:
    """``killed`` actors lose their process, and none of its children, and get another one."""

    exceptions = SimpleNamespace(
        RayError=RayError, ActorDiedError=ActorDiedError, ActorUnavailableError=ActorUnavailableError
    )

    def __init__(self) -> None:
        self.was_current_actor_reconstructed = False

    def get_runtime_context(self) -> FakeRay:
        return self

    def kill(self, handle: Handle, *, no_restart: bool) -> None:
        assert not no_restart
        self.was_current_actor_reconstructed = True
        handle.start()


class Handle:
    """``handle.method.remote()`` as of an actor."""

    def __init__(self, config: ServeConfig, node: NodeConfig) -> None:
        self._arguments = config, node, NAMESPACE
        self.start()

    def start(self) -> None:
        self.actor = VllmNodeActor(*self._arguments)

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: asyncio.ensure_future(getattr(self.actor, name)(*given)))


def without_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay()
    for module in (vllm_node, vllm_servers):
        monkeypatch.setattr(module, "import_ray", lambda: ray)
    monkeypatch.setattr(vllm_node, "set_up_process", lambda config: None)
    return ray
