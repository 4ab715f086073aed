"""``dualpath testbed rollout``: a testbed of its own, the rollout on it, and nothing left, whatever happens."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dualpath.cluster.signals import interrupted_by_signals
from dualpath.cluster.vllm.environment import find_environment
from dualpath.testbed.lifecycle import Testbed
from dualpath.testbed.rollout_driver import DriverOrder
from dualpath.testbed.rollout_processes import find_rclone
from dualpath.testbed.rollout_settings import TestbedRolloutSettings, check, testbed_spec
from dualpath.testbed.signals import undisturbed
from dualpath.testbed.spec import SWITCH, TestbedSpec
from dualpath.testbed.system import require_tools

_DRIVER_MODULE = "dualpath.testbed.rollout_driver"


def run(settings: TestbedRolloutSettings) -> int:
    """Exit code as ``bench rollout``'s. Raises ConfigError where this machine cannot, KeyboardInterrupt on a signal."""
    settings = check(settings)
    spec = testbed_spec(settings)
    require_tools()
    find_rclone()
    if settings.cluster.engine == "vllm":
        find_environment(settings.vllm)
    with (
        interrupted_by_signals(),
        tempfile.TemporaryDirectory(prefix="dualpath-testbed-", ignore_cleanup_errors=True) as directory,
        _own_testbed(spec) as testbed,
    ):
        return _drive(testbed, DriverOrder(settings, Path(directory)))


def _drive(testbed: Testbed, order: DriverOrder) -> int:
    process = subprocess.Popen(
        testbed.command_on(SWITCH, [sys.executable, "-m", _DRIVER_MODULE]),
        stdin=subprocess.PIPE,
        env={**os.environ, **testbed.spec.environment(SWITCH)},
        start_new_session=True,  # Ctrl-C comes to us, and we end everything
    )
    process.communicate(pickle.dumps(order))  # interrupted, it leaves the process to ``Testbed.down``
    return process.returncode


@contextmanager
def _own_testbed(spec: TestbedSpec) -> Iterator[Testbed]:
    testbed = Testbed.up(spec)
    try:
        yield testbed
    finally:
        with undisturbed():
            Testbed.down(spec.name)
