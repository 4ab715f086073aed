"""Rollouts on testbeds of their own, from the command line, and that nothing is left of these."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dualpath.cli.main import main
from dualpath.core.errors import ConfigError
from dualpath.testbed import Testbed, lifecycle
from dualpath.testbed.rollout_processes import find_rclone
from dualpath.testbed.system import existing_namespaces, missing_kernel_features


@contextmanager
def leaving_nothing(name: str) -> Iterator[None]:
    """Of a testbed of this name. Skips where this machine can have none."""
    if lacks := missing_kernel_features():
        pytest.skip(f"needs a kernel with {', '.join(lacks)}")
    try:
        find_rclone()
    except ConfigError as error:
        pytest.skip(str(error))
    try:
        yield
        assert not [found for found in existing_namespaces() if found.startswith(name)]
        assert not list(lifecycle.STATE_DIR.glob(f"*{name}*"))
    finally:
        Testbed.down(name)


def rollout(verb: str, model_dir: Path, out: Path, flags: str) -> dict[str, Any]:
    """Its JSON."""
    assert main([verb, "rollout", "--model", str(model_dir), "--json", str(out), *flags.split()]) == 0
    report: dict[str, Any] = json.loads(out.read_text())
    return report
