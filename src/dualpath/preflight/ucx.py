"""Can NIXL start UCX on a node's devices? Tried in a process of its own, with the node's environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping

from dualpath.preflight.line import Line, fail, ok

_LIMIT_S = 120.0
_PROBE = """\
from dualpath.core.errors import DualPathError
from dualpath.traffic.nixl_transport import NixlTransport
try:
    NixlTransport("check", backends=("UCX",))
except DualPathError as error:
    raise SystemExit(str(error))
"""


def check_ucx(environment: Mapping[str, str]) -> Iterator[Line]:
    devices = environment.get("UCX_NET_DEVICES", "all devices")
    shown = devices + (f", UCX_TLS={environment['UCX_TLS']}" if "UCX_TLS" in environment else "")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=os.environ | dict(environment) | {"UCX_LOG_LEVEL": "warn"},
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        yield fail("UCX", f"{shown}: {type(error).__name__}", "rdma-core and the driver; UCX_LOG_LEVEL=info says more")
        return
    output = done.stdout + done.stderr
    complaints = [line.split("UCX", 1)[1].split(None, 1)[1] for line in output.splitlines() if _is_complaint(line)]
    if done.returncode:
        reason = (complaints or output.strip().splitlines()[-1:] or ["no reason given"])[0]
        yield fail("UCX", f"{shown}: {reason}", "rdma_devices, compute_nics and env of the node")
    elif complaints:
        yield fail("UCX", f"{shown}: {complaints[0]}", "rdma_devices, compute_nics and env of the node")
    else:
        yield ok("UCX", f"starts on {shown}")


def _is_complaint(line: str) -> bool:
    return " UCX " in line and ("not available" in line or "no usable transports" in line)
