"""A Ray cluster of one machine, started for a system and ended with it: small, quiet, and with a token.

Ray listens on the machine's address even when told to use loopback alone, so it always asks for the token.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys

from dualpath.cluster.free_ports import free_ports
from dualpath.config import ServeConfig
from dualpath.core.errors import DualPathError
from dualpath.ray.run_dir import MARKER, RunDir
from dualpath.ray.runtime import wanted_units

_START_DEADLINE_S = 120.0
_TOKEN_BYTES = 32


def start_ray(config: ServeConfig, run_dir: RunDir) -> str:
    """Start Ray with all units that nodes will take; returns its address. Raises DualPathError."""
    run_dir.token_file.touch(mode=0o600)
    run_dir.token_file.write_text(secrets.token_hex(_TOKEN_BYTES), encoding="ascii")
    use_token(run_dir)
    (port,) = free_ports(1, "")
    resources = {name: float(count) for name, count in wanted_units(config).items()}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats"]
    command += [f"--object-store-memory={config.ray.object_store_bytes}", f"--temp-dir={run_dir.ray_dir}"]
    command += [f"--resources={json.dumps(resources)}"]
    # Ray gives way to everything else on the machine (niceness 15): engines and gateway would wait for all of it.
    environment = {"RAY_worker_niceness": "0", **os.environ, MARKER: str(run_dir.path), "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_START_DEADLINE_S,
            start_new_session=True,  # Ctrl-C here must not end it: that is for ``down`` to do in order
        )
    except subprocess.TimeoutExpired:
        raise DualPathError(f"Ray did not start within {_START_DEADLINE_S:g} s") from None
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        raise DualPathError(f"Ray did not start: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return f"{_own_address()}:{port}"


def use_token(run_dir: RunDir) -> None:
    """Make this process, and what it starts, use the token of a Ray that was started here."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(run_dir.token_file)
    os.environ.pop("RAY_AUTH_TOKEN", None)  # it would win


def _own_address() -> str:
    """As Ray finds its own: the address that would reach the outside, if there is one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("8.8.8.8", 80))  # no packet is sent
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
