"""Start a system of nodes on Ray, and end it: what ``dualpath up``, ``dualpath down`` and ``serve`` with nodes do."""

from __future__ import annotations

import dataclasses
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from dualpath.config import ServeConfig
from dualpath.core.errors import ConfigError, DualPathError
from dualpath.launch.node_process import check_shared_store
from dualpath.launch.ray.actors import Look, start_gateway, start_node
from dualpath.launch.ray.ending import end_actors
from dualpath.launch.ray.foreground import first_signal, interrupt_on_signals
from dualpath.launch.ray.local import start_ray
from dualpath.launch.ray.run_dir import RunDir, State
from dualpath.launch.ray.runtime import GATEWAY, check_resources, connect, require_ray, warn_if_open
from dualpath.launch.serve import check, url_of
from dualpath.launch.threads import share_cores
from dualpath.store.open import parse_url

Say = Callable[[str], None]

_LOOK_WAIT_S = 5.0
_GATEWAY_S = 120.0  # until its process has started; from then on it answers within _LOOK_WAIT_S
_WILDCARDS = ("0.0.0.0", "::")


class System:
    """One named system as seen from the machine where it was started."""

    def __init__(self, name: str, say: Say) -> None:
        self._name, self._say = name, say
        self._run_dir = RunDir.of(name)

    def up(self, config: ServeConfig) -> str:
        """Start everything; returns the gateway's URL when it listens. After an error nothing is left."""
        if self._run_dir.is_there:
            raise self._is_up()
        config = with_absolute_paths(config)
        check(config)
        check_shared_store(config.store.url)
        require_ray()
        interrupt_on_signals()
        try:
            self._run_dir.create()
        except FileExistsError:
            raise self._is_up() from None
        try:
            return self._up(config)
        except BaseException:
            self._say("ending what was started")
            self.down(0.0)
            raise

    def _is_up(self) -> ConfigError:
        return ConfigError(
            f"{self._name} is up already, or was not ended: dualpath down --cluster-name {self._name}; "
            "--cluster-name gives a second system a name"
        )

    def _up(self, config: ServeConfig) -> str:
        address, is_own = config.ray.address, config.ray.address is None
        if address is None:
            self._say("starting Ray on this machine")
            address = start_ray(config.ray, config.nodes, self._run_dir)
        elif warning := warn_if_open(config.ray):
            self._say(warning)
        namespace = f"{self._name}-{secrets.token_hex(4)}"
        nodes = tuple(node.name for node in config.nodes if node.role != GATEWAY)
        state = State(self._name, address, namespace, is_own, nodes)
        ray = connect(address, namespace)
        interrupt_on_signals()  # Ray has set its own
        self._run_dir.write(state)
        try:
            check_resources(ray, config.nodes)
            if is_own:
                config = share_cores(config)
            for node in config.nodes:
                if node.role != GATEWAY:
                    start_node(config, node, namespace)
            url = self._follow(ray, config, namespace)
        finally:
            ray.shutdown()
        self._run_dir.write(dataclasses.replace(state, url=url))
        return url

    def _follow(self, ray: ModuleType, config: ServeConfig, namespace: str) -> str:
        """Show what the gateway says until it listens."""
        gateway = start_gateway(config, namespace)
        num_seen = 0
        while True:
            try:
                look: Look = ray.get(gateway.look.remote(num_seen, _LOOK_WAIT_S), timeout=_GATEWAY_S)
            except ray.exceptions.GetTimeoutError:
                raise DualPathError(f"the gateway's process does not answer within {_GATEWAY_S:g} s") from None
            except ray.exceptions.RayError as error:
                raise DualPathError(f"the gateway ended: {str(error).splitlines()[0]}") from None
            for line in look.lines:
                self._say(line)
            num_seen += len(look.lines)
            if look.failure is not None:
                raise look.failure.error()
            if look.address is not None:
                host, port = look.address
                return url_of(socket.gethostname() if host in _WILDCARDS else host, port)

    def down(self, drain_s: float) -> None:
        """End everything, running requests after ``drain_s``. Raises DualPathError where nothing is up."""
        if not self._run_dir.is_there:
            raise DualPathError(f"no system of the name {self._name} was started on this machine")
        state = self._run_dir.read()
        if state is not None:
            self._end_in_order(state, drain_s)
        self._run_dir.end_processes()
        self._run_dir.remove()

    def _end_in_order(self, state: State, drain_s: float) -> None:
        """Where that is possible; a Ray of our own is ended with all its processes anyway."""
        try:
            end_actors(self._run_dir, state, drain_s, self._say)
        except DualPathError as error:
            if not state.is_own_ray:
                hint = f"if that Ray is gone for good, so is the system: remove {self._run_dir.path}"
                raise DualPathError(f"{error}; {hint}") from None
            self._say(f"warning: {error}")


def with_absolute_paths(config: ServeConfig) -> ServeConfig:
    """Other processes have other working directories."""
    scheme, name, _ = parse_url(config.store.url)
    url = f"file://{name}" if scheme == "file" and "://" not in config.store.url else config.store.url
    model, observe = config.model, config.observe
    profile = None if model.profile is None else model.profile.absolute()
    trace = None if observe.trace_out is None else observe.trace_out.absolute()
    return dataclasses.replace(
        config,
        store=dataclasses.replace(config.store, url=url),
        model=dataclasses.replace(model, dir=Path(model.dir).absolute(), profile=profile),
        observe=dataclasses.replace(observe, trace_out=trace),
    )


def run_in_foreground(config: ServeConfig, say: Say) -> int:
    """``up``, wait for Ctrl-C or SIGTERM, ``down``; a second signal while requests drain ends them at once."""
    system, drain_s = System(config.ray.name, say), config.gateway.drain_s
    url = system.up(config)
    try:
        with first_signal() as came:
            say(f"listening on {url}")
            while not came.wait(1.0):  # in pieces: a handler runs between two of them
                pass
        say(f"stopping: running requests get up to {drain_s:g} s; Ctrl-C again stops at once")
        system.down(drain_s)
    except BaseException:
        say("stopping at once")
        system.down(0.0)
        raise
    say("stopped")
    return 0
