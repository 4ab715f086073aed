"""The orderly end of a system's actors, in a process of its own with a deadline.

Ray ends the process that is its client when the machine's raylet is gone, and one that cannot reach it may wait for
good, deaf to signals: neither may happen to whoever has to clean up.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from dualpath.core.errors import DualPathError
from dualpath.launch.ray.local import use_token
from dualpath.launch.ray.run_dir import RunDir, State
from dualpath.launch.ray.runtime import GATEWAY, connect, find_actor, node_actor_name

Say = Callable[[str], None]

_MODULE = "dualpath.launch.ray.ending"
_CONNECT_S = 20
_END_S = 30.0  # for the gateway, beyond the drain, and for the nodes
_REFUSED = 3  # exit code: the last line says why


def end_actors(run_dir: RunDir, state: State, drain_s: float, say: Say) -> None:
    """Returns when all have ended, by themselves or killed. Raises DualPathError where that cannot be known."""
    deadline_s = _CONNECT_S + drain_s + 2 * _END_S
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
    reason = lines.pop() if done.returncode == _REFUSED else f"no connection to Ray at {state.address}"
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
    gateway = find_actor(ray, GATEWAY, state.namespace)
    if gateway is not None:
        _finish(ray, [gateway.stop.remote(drain_s)], drain_s)
        ray.kill(gateway)
    found = (find_actor(ray, node_actor_name(name), state.namespace) for name in state.nodes)
    nodes = [node for node in found if node is not None]
    _finish(ray, [node.close.remote() for node in nodes], 0.0)
    for node in nodes:
        ray.kill(node)


def _finish(ray: ModuleType, ends: list[object], drain_s: float) -> None:
    with contextlib.suppress(ray.exceptions.RayError):  # dead already
        _, late = ray.wait(ends, num_returns=len(ends), timeout=drain_s + _END_S) if ends else ([], [])
        if late:
            print(f"warning: {len(late)} processes did not end by themselves and are killed", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
