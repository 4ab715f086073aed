"""Shared fixtures, and what every test may count on: one thread per model, no network, skips that say why."""

from __future__ import annotations

import os

# Before anything imports torch: small models gain nothing from threads, and tests run beside each other.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if not os.path.exists("/dev/nvidia0"):
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels on CPUs; read where triton is imported

import fcntl
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from family to the directory of a small random model, made at most once per session; read only."""
    import torch

    from dualpath.models.init import init_model

    torch.set_num_threads(1)

    @cache
    def make(family: str = "llama") -> Path:
        return init_model(family, tmp_path_factory.mktemp("tiny") / family, preset="tiny", seed=1)

    return make


# Begun first, in this order, so that no worker is left with a long file at the end. Those that want the testbed to
# themselves are apart from each other. Ray's five processes start in time only when torch has been read from disk.
_LONG_FILES = (
    "e2e/test_exactness.py",
    "testing/test_ablations.py",
    "e2e/test_ray.py",
    "validation/test_fabric_check.py",
    "ray/test_gateways.py",
    "testing/test_worlds.py",
    "models/test_parallel.py",
    "testbed/test_rollout.py",
    "e2e/test_parallel.py",
    "e2e/test_serve.py",
    "sim/test_compiled.py",
    "testing/test_mutants.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, and skip what this machine cannot run; the reasons appear in the summary."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(_LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
    for item in items:
        for mark, missing in (("gpu", _no_gpu), ("root", _no_root), ("ray", _no_ray)):
            if item.get_closest_marker(mark) and (reason := missing()):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _one_testbed_at_a_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests that make namespaces look at the machine's: with ``-n`` they wait for each other."""
    if request.node.get_closest_marker("root") is None or request.node.get_closest_marker("skip") is not None:
        yield
        return
    with open(Path(tempfile.gettempdir()) / "dualpath-test-root.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@cache
def _no_gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "needs a CUDA device"


@cache
def _no_root() -> str:
    return "" if os.geteuid() == 0 and shutil.which("ip") else "needs root and iproute2"


@cache
def _no_ray() -> str:
    return "" if importlib.util.find_spec("ray") else "needs Ray"
