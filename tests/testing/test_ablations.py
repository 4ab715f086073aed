"""Take a safeguard away, and one of the first 200 seeds finds it: what nothing finds is untested, or not needed."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from dualpath.testing.ablations import ABLATIONS
from dualpath.testing.explore import run_seed


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ABLATIONS)
def test_it_is_missed(name: str) -> None:
    with ABLATIONS[name]():
        assert any(run_seed(seed).violation for seed in range(200)), f"nobody misses it: {name}"
