"""Start a system of nodes on Ray, and end it: what ``dualpath up``, ``dualpath down`` and ``serve`` with nodes do."""

from __future__ import annotations

import dataclasses
import os
import secrets
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from dualpath.cluster.node_process import check_shared_store
from dualpath.cluster.signals import interrupt_on_signals
from dualpath.cluster.threads import share_cores
from dualpath.config import ServeConfig
from dualpath.core.errors import ConfigError, DualPathError
from dualpath.preflight.run import quick
from dualpath.ray.actors import start_node
from dualpath.ray.ending import end_actors
from dualpath.ray.foreground import first_signal, one_more_signal
from dualpath.ray.fronts import Look, start_fronts
from dualpath.ray.local import start_ray
from dualpath.ray.placing import GatewayPlace, gateway_places
from dualpath.ray.run_dir import RunDir, State
from dualpath.ray.runtime import (
    GATEWAY,
    LOOPBACK,
    Handle,
    check_resources,
    connected,
    gateway_names,
    require_ray,
    warn_if_open,
)
from dualpath.serving.serve import check, url_of
from dualpath.store.open import parse_url

Say = Callable[[str], None]

_LOOK_WAIT_S = 5.0
_AT_ONCE_S = 0.5  # from SIGTERM to SIGKILL, for whoever asks twice
_FRONT_S = 120.0  # until its process has started; from then on it answers within _LOOK_WAIT_S


class System:
    """One named system as seen from the machine where it was started."""

    def __init__(self, name: str, say: Say) -> None:
        self._name, self._say = name, say
        self._run_dir = RunDir.of(name)

    def up(self, config: ServeConfig) -> tuple[str, ...]:
        """Start everything; returns the gateways' URLs when they listen. After an error nothing is left."""
        if self._run_dir.is_there:
            raise self._is_up()
        config = with_absolute_paths(config)
        check(config)
        check_shared_store(config.store.url)
        require_ray()
        quick(config, self._say)
        interrupt_on_signals()
        try:
            self._run_dir.create()
        except FileExistsError:
            raise self._is_up() from None
        try:
            return self._up(config)
        except BaseException:
            self.clean_up("ending what was started")
            raise

    def _is_up(self) -> ConfigError:
        return ConfigError(
            f"{self._name} is up already, or was not ended: dualpath down --cluster-name {self._name}; "
            "--cluster-name gives a second system a name"
        )

    def _up(self, config: ServeConfig) -> tuple[str, ...]:
        address, is_own = config.ray.address, config.ray.address is None
        if address is None:
            self._say("starting Ray on this machine")
            address = start_ray(config, self._run_dir)
        elif warning := warn_if_open(config.ray):
            self._say(warning)
        namespace = f"{self._name}-{secrets.token_hex(4)}"
        nodes = tuple(node.name for node in config.nodes if node.role != GATEWAY)
        config, logs = _with_logs(config, namespace)
        gateways = gateway_names(config.ray.gateways)
        mode = os.environ.get("RAY_AUTH_MODE")
        state = State(self._name, address, namespace, is_own, nodes, gateways, auth_mode=mode, vllm_logs=logs)
        with connected(address, namespace) as ray:
            interrupt_on_signals()  # Ray has set its own
            self._run_dir.write(state)
            check_resources(ray, config, self._say)
            places = gateway_places(ray, config)
            if warning := _warn_if_apart(config, places):
                self._say(warning)
            if is_own:
                config = share_cores(config)
            for node in config.nodes:
                if node.role != GATEWAY:
                    start_node(config, node, namespace)
            fronts = start_fronts(config, namespace, places)
            found = [self._follow(ray, name, front) for name, front in fronts.items()]
        urls = tuple(url for url in found if url is not None)
        self._run_dir.write(dataclasses.replace(state, urls=urls))
        return urls

    def _follow(self, ray: ModuleType, name: str, front: Handle) -> str | None:
        """Show what it says until it is ready; its URL, if it has one."""
        num_seen = 0
        while True:
            try:
                look: Look = ray.get(front.look.remote(num_seen, _LOOK_WAIT_S), timeout=_FRONT_S)
            except ray.exceptions.GetTimeoutError:
                raise DualPathError(f"the {name}'s process does not answer within {_FRONT_S:g} s") from None
            except ray.exceptions.RayError as error:
                raise DualPathError(f"the {name} ended: {str(error).splitlines()[0]}") from None
            for line in look.lines:
                self._say(line)
            num_seen += len(look.lines)
            if look.failure is not None:
                raise look.failure.error()
            if look.is_ready:
                return None if look.address is None else url_of(*look.address)

    def down(self, drain_s: float) -> None:
        """End everything, running requests after ``drain_s``. Raises DualPathError where nothing is up."""
        if not self._run_dir.is_there:
            raise DualPathError(self._run_dir.why_not_there())
        state = self._run_dir.read()
        if state is not None:
            self._end_in_order(state, drain_s)
        self._run_dir.end_processes()
        self._run_dir.remove()

    def clean_up(self, line: str) -> None:
        """``down`` without a drain, which one more signal shortens and none breaks off."""
        with one_more_signal():
            try:
                self._say(line)
                self.down(0.0)
            except KeyboardInterrupt:
                self._end_at_once()

    def _end_at_once(self) -> None:
        """What is on this machine. Actors on a Ray of others are left to ``down``, which has to know them."""
        self._run_dir.end_processes(_AT_ONCE_S)
        state = self._run_dir.read()
        if state is None or state.is_own_ray:
            self._run_dir.remove()
        else:
            self._say(f"nodes may still run: dualpath down --cluster-name {self._name} ends them")

    def _end_in_order(self, state: State, drain_s: float) -> None:
        """Where that is possible; a Ray of our own is ended with all its processes anyway."""
        try:
            end_actors(self._run_dir, state, drain_s, self._say)
        except DualPathError as error:
            if not state.is_own_ray:
                hint = f"if that Ray is gone for good, so is the system: remove {self._run_dir.path}"
                raise DualPathError(f"{error}; {hint}") from None
            self._say(f"warning: {error}")


def _warn_if_apart(config: ServeConfig, places: Sequence[GatewayPlace]) -> str | None:
    """A line where gateways on other hosts would be reached from those alone."""
    others = {place.address for place in places} - {places[0].address}
    if not others or config.gateway.host not in LOOPBACK:
        return None
    where = config.gateway.host
    return f"warning: gateways on {', '.join(sorted(others))} listen on their own {where}; --host 0.0.0.0 for all"


def _with_logs(config: ServeConfig, namespace: str) -> tuple[ServeConfig, str | None]:
    """Where vLLM servers log, if there are any: the same on all hosts, and still there after ``down``."""
    if config.cluster.engine != "vllm":
        return config, None
    logs = config.vllm.log_dir or Path(tempfile.gettempdir()) / f"dualpath-vllm-{namespace}"
    return dataclasses.replace(config, vllm=dataclasses.replace(config.vllm, log_dir=logs)), str(logs)


def with_absolute_paths(config: ServeConfig) -> ServeConfig:
    """Other processes have other working directories."""
    scheme, name, _ = parse_url(config.store.url)
    url = f"file://{name}" if scheme == "file" and "://" not in config.store.url else config.store.url
    model, observe = config.model, config.observe
    profile = None if model.profile is None else model.profile.absolute()
    trace = None if observe.trace_out is None else observe.trace_out.absolute()
    python, logs = config.vllm.python, config.vllm.log_dir
    if python is not None and len(python.parts) > 1:  # else it is one on PATH
        python = python.absolute()
    logs = None if logs is None else logs.absolute()
    return dataclasses.replace(
        config,
        store=dataclasses.replace(config.store, url=url),
        model=dataclasses.replace(model, dir=Path(model.dir).absolute(), profile=profile),
        observe=dataclasses.replace(observe, trace_out=trace),
        vllm=dataclasses.replace(config.vllm, python=python, log_dir=logs),
    )


def run_in_foreground(config: ServeConfig, say: Say) -> int:
    """``up``, wait for Ctrl-C or SIGTERM, ``down``; a second signal while requests drain ends them at once."""
    system, drain_s = System(config.ray.name, say), config.gateway.drain_s
    urls = system.up(config)
    try:
        with first_signal() as came:
            for url in urls:
                say(f"listening on {url}")
            while not came.wait(1.0):  # in pieces: a handler runs between two of them
                pass
        say(f"stopping: running requests get up to {drain_s:g} s; Ctrl-C again stops at once")
        system.down(drain_s)
    except BaseException:
        system.clean_up("stopping at once")
        raise
    say("stopped")
    return 0
