"""When agents arrive: a Poisson process, the same one for whoever asks with the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator


def arrival_times_s(rate_per_s: float, until_s: float, seed: int) -> Iterator[float]:
    """Exponential gaps from a seeded source: the same for every system, and the same but for scale at every rate."""
    source = random.Random(f"arrivals/{seed}")
    moment = source.expovariate(1.0) / rate_per_s
    while moment < until_s:
        yield moment
        moment += source.expovariate(1.0) / rate_per_s
