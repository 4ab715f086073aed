"""How long a forward takes, by its theoretical work: three terms with non-negative coefficients, fitted to a profile.

A prefill of (cached, new) tokens does work in proportion to ``new`` (projections, MLP) and to the query-key pairs of
causal attention, ``new * (cached + new / 2)``; a batch is the sum of its requests. All layers together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pair = tuple[int, int]  # (cached tokens, new tokens) of one request in a forward


def attention_pairs(num_cached: int, num_new: int) -> float:
    """Query-key pairs of causal attention: every new token sees the cached ones and, on average, half of the new."""
    return num_new * (num_cached + num_new / 2)


@dataclass(frozen=True, slots=True)
class ForwardCost:
    """Seconds of one prefill forward of one engine."""

    base_s: float = 0.0
    per_token_s: float = 0.0
    per_pair_s: float = 0.0

    def forward_s(self, batch: Iterable[Pair]) -> float:
        batch = list(batch)
        return self.base_s + self.per_token_s * sum(new for _, new in batch) + self.attention_s(batch)

    def attention_s(self, batch: Iterable[Pair]) -> float:
        """The part that grows with the history: what the compute quota limits (paper section 6)."""
        return sum(self.request_attention_s(cached, new) for cached, new in batch)

    def request_attention_s(self, num_cached: int, num_new: int) -> float:
        return self.per_pair_s * attention_pairs(num_cached, num_new)


@dataclass(frozen=True, slots=True)
class DecodeCost:
    """Seconds of one decode step of one engine."""

    base_s: float = 0.0
    per_request_s: float = 0.0
    per_context_token_s: float = 0.0  # of all requests in the batch together

    def step_s(self, num_requests: int, num_context_tokens: int) -> float:
        return self.base_s + self.per_request_s * num_requests + self.per_context_token_s * num_context_tokens


def fit_forward(samples: Sequence[tuple[float, float, float]]) -> ForwardCost:
    """From measured (cached, new, seconds); of a batch, what one request of the same tokens and pairs has."""
    rows = [(1.0, new, new * (cached + new / 2)) for cached, new, _ in samples]
    return ForwardCost(*_fit(rows, [seconds for *_, seconds in samples]))


def fit_decode(samples: Sequence[tuple[float, float, float]]) -> DecodeCost:
    """From measured (requests, context tokens of all together, seconds)."""
    rows = [(1.0, requests, tokens) for requests, tokens, _ in samples]
    return DecodeCost(*_fit(rows, [seconds for *_, seconds in samples]))


def _fit(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Non-negative least squares of relative errors, so that short and long forwards count alike.

    With three coefficients all choices of which are zero can be tried: the best feasible one is the optimum.
    """
    times = np.asarray(seconds, dtype=np.float64)
    matrix = np.asarray(rows, dtype=np.float64) / times[:, None]
    best, best_error = np.zeros(matrix.shape[1]), float(len(times))  # all zero: every relative error is 1
    for count in range(1, matrix.shape[1] + 1):
        for columns in itertools.combinations(range(matrix.shape[1]), count):
            solution = _solve(matrix[:, columns])
            error = float(np.sum((matrix[:, columns] @ solution - 1.0) ** 2))
            if solution.min() >= 0.0 and error < best_error:
                best, best_error = np.zeros(matrix.shape[1]), error
                best[list(columns)] = solution
    return [float(value) for value in best]


def _solve(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Least squares for a right side of ones. Columns differ by many powers of ten: scaled to one size first."""
    scale = np.linalg.norm(matrix, axis=0)
    solution = np.linalg.lstsq(matrix / scale, np.ones(len(matrix)), rcond=None)[0]
    return np.asarray(solution / scale, dtype=np.float64)
