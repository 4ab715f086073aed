"""The orderly end of a system's actors, in a process of its own with a deadline.

Ray ends the process that is its client when the machine's raylet is gone, and one that cannot reach it may wait for
good, deaf to signals: neither may happen to whoever has to clean up.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType

from dualpath.core.errors import DualPathError
from dualpath.ray.local import use_token
from dualpath.ray.run_dir import RunDir, State
from dualpath.ray.runtime import SCHEDULER, TOKEN_HINT, Handle, connect, find_actor, node_actor_name

Say = Callable[[str], None]

_MODULE = "dualpath.ray.ending"
_CONNECT_S = 20
_END_S = 30.0  # for the gateways, beyond the drain, for their scheduler, and for the nodes
_REFUSED = 3  # exit code: the last line says why


def end_actors(run_dir: RunDir, state: State, drain_s: float, say: Say) -> None:
    """Returns when all have ended, by themselves or killed. Raises DualPathError where that cannot be known."""
    deadline_s = _CONNECT_S + drain_s + 3 * _END_S
    try:
        done = subprocess.run(
            [sys.executable, "-m", _MODULE, str(run_dir.path), repr(drain_s)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Ray's
            text=True,
            timeout=deadline_s,
            start_new_session=True,  # Ctrl-C comes to us, and this call ends the process
        )
    except subprocess.TimeoutExpired:
        raise DualPathError(f"Ray at {state.address} does not answer within {deadline_s:g} s") from None
    lines = done.stdout.splitlines()
    unreached = f"no connection to Ray at {state.address}{'' if state.is_own_ray else f'; {TOKEN_HINT}'}"
    reason = lines.pop() if done.returncode == _REFUSED else unreached
    for line in lines:
        say(line)
    if done.returncode:
        raise DualPathError(reason)


def main(arguments: Sequence[str]) -> int:
    run_dir, drain_s = RunDir(Path(arguments[0])), float(arguments[1])
    state = run_dir.read()
    assert state is not None
    if state.is_own_ray:
        use_token(run_dir)
    elif state.auth_mode is not None:
        os.environ.setdefault("RAY_AUTH_MODE", state.auth_mode)
    signal.alarm(_CONNECT_S)  # ends this process: Ray would look for a dead raylet for a minute
    try:
        ray = connect(state.address, state.namespace)
    except DualPathError as error:
        print(" ".join(str(error).split()))
        return _REFUSED
    signal.alarm(0)
    _end_in_order(ray, state, drain_s)
    ray.shutdown()
    return 0


def _end_in_order(ray: ModuleType, state: State, drain_s: float) -> None:
    """Gateways, their scheduler, nodes: whoever asks before who is asked."""
    _end_all(ray, state, state.gateways, lambda gateway: gateway.stop.remote(drain_s), drain_s)
    _end_all(ray, state, (SCHEDULER,), lambda scheduler: scheduler.stop.remote(0.0), 0.0)
    _end_all(ray, state, map(node_actor_name, state.nodes), lambda node: node.close.remote(), 0.0)


def _end_all(
    ray: ModuleType, state: State, names: Iterable[str], end: Callable[[Handle], object], drain_s: float
) -> None:
    actors = [actor for name in names if (actor := find_actor(ray, name, state.namespace)) is not None]
    _finish(ray, [end(actor) for actor in actors], drain_s)
    for actor in actors:
        ray.kill(actor)


def _finish(ray: ModuleType, ends: list[object], drain_s: float) -> None:
    with contextlib.suppress(ray.exceptions.RayError):  # dead already
        _, late = ray.wait(ends, num_returns=len(ends), timeout=drain_s + _END_S) if ends else ([], [])
        if late:
            print(f"warning: {len(late)} processes did not end by themselves and are killed", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
