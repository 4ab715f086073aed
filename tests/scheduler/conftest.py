"""What every scenario checks: no bug of ours was logged and then forgotten."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from tests.scheduler.tracebacks import Tracebacks


@pytest.fixture(autouse=True)
def tracebacks() -> Iterator[Tracebacks]:
    """A test that means to cause some takes them."""
    tracebacks = Tracebacks()
    logging.getLogger().addHandler(tracebacks)
    try:
        yield tracebacks
    finally:
        logging.getLogger().removeHandler(tracebacks)
    assert not tracebacks.take(), "logged with a traceback"
