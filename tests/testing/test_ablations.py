"""Take a safeguard away, and a seed finds it: what nothing finds is untested, or not needed.

It is one of the first 200, but for two that another has found.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from dualpath.testing.ablations import ABLATIONS
from dualpath.testing.explore import run_seed

# Where one was seen last; others are tried where that has changed.
SEEN_AT = {
    "without-comparing-history": 71,
    "without-comparing-device-memory": 71,
    "late-transfers-give-their-slots-back": 155,
    "failed-pushes-count-as-ended": 11,
    "decode-engines-remove-nobody": 19,
    "new-schedulers-know-of-no-former-peers": 72,
    "decode-slots-are-released-first": 151,
    "kept-requests-store-what-they-make": 47,
    "resumed-requests-forget-their-tokens": 18,
    "former-sessions-are-served": 42,
    "failed-writes-stay-announced": 33,
    "dead-gateways-keep-what-they-held": 14,
    "dead-gateways-calls-go-on": 57,
    "notes-are-not-sent-again": 28,
    "requests-are-placed-again-while-being-given-back": 200169,
    "gateways-wait-for-news-of-a-desk-that-is-gone": 200147,
    "gateways-never-hear-of-the-end-of-a-pause": 17,
    "pauses-are-answered-while-lost-engines-compute": 548,
    "new-schedulers-know-of-no-pause": 84,
    "gateways-tell-new-schedulers-of-no-pause": 123,
}


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ABLATIONS)
def test_it_is_missed(name: str) -> None:
    with ABLATIONS[name]():
        seeds = [seed for seed in (SEEN_AT.get(name), *range(200)) if seed is not None]
        assert any(run_seed(seed).violation for seed in seeds), f"nobody misses it: {name}"
