"""Measures a model on this machine: prefill over a grid of (cached, new), decode over (requests, context), plain rates.

Times are the best of a few repetitions: what the hardware can do, not what else it was doing. The grid is walked from
cheap to dear until the time is up, so a slow machine gets a coarser profile and never a long wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from dualpath.cluster.profile import DecodeSample, PrefillSample, Profile, Setup
from dualpath.core.runtime import Clock
from dualpath.models.seam import DecodeBatch, Model, PrefillItem
from dualpath.scheduler.policy.cost import attention_pairs, fit_decode, fit_forward
from dualpath.store.hashes import digest_128

Progress = Callable[[str], None]

BUSY_S = 5.0  # beta: tokens one engine computes in this time (paper section 6)
CACHED_TOKENS = (0, 512, 2048, 8192, 32768)
NEW_TOKENS = (16, 64, 256, 1024, 4096)
DECODE_REQUESTS = (1, 4, 16, 64)
CONTEXT_TOKENS = (64, 512, 2048, 8192)
BLOCK_TOKENS = 64
MAX_KV_BYTES = 512 * 1024**2  # of workspaces, and of the pool
RATE_BYTES = 64 * 1024**2
ENOUGH_S = 0.2  # repeat a measurement until it took this long together, at most MAX_REPEATS times
MAX_REPEATS = 5
MIN_SAMPLES = 4  # of the cheapest, however long they take: a fit of three coefficients needs them


@dataclass(slots=True)
class ZeroStream:
    """A ``LayerStream`` whose history is zeros: two workspaces, nothing to wait for."""

    workspaces: torch.Tensor  # uint8 [2, rows, bytes_per_token_layer]

    def acquire(self, layer: int) -> torch.Tensor:
        return self.workspaces[layer % 2]

    def release(self, layer: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Measurer:
    model: Model
    clock: Clock
    budget_s: float = 40.0  # for everything; one measurement may exceed it a little
    progress: Progress = lambda _: None

    def profile(self, threads: int) -> Profile:
        """Everything, on the calling thread, which must be the model's."""
        prefill = self.prefill(0.6 * self.budget_s)
        decode = self.decode(0.3 * self.budget_s)
        rates = [sample.num_new / sample.time_s for sample in prefill if sample.num_cached == 0]
        return Profile(
            setup=Setup.of(self.model, threads),
            prefill_cost=fit_forward([(s.num_cached, s.num_new, s.time_s) for s in prefill]),
            decode_cost=fit_decode([(s.num_requests, s.num_context_tokens, s.time_s) for s in decode]),
            beta_tokens=max(1, int(BUSY_S * max(rates))),
            checksum_bytes_per_s=self.checksum_rate(),
            copy_bytes_per_s=self.copy_rate(),
            prefill=tuple(prefill),
            decode=tuple(decode),
        )

    # -- prefill --------------------------------------------------------------------------------------------------

    def prefill(self, budget_s: float) -> list[PrefillSample]:
        spec = self.model.spec
        most = min(spec.max_context_tokens, MAX_KV_BYTES // (2 * spec.bytes_per_token_layer))
        grid = [(c, min(n, most)) for c in CACHED_TOKENS for n in NEW_TOKENS if c + n <= most] or [(0, most)]
        shape = (2, max(c + n for c, n in grid), spec.bytes_per_token_layer)
        stream = ZeroStream(torch.zeros(shape, dtype=torch.uint8, device=self.model.device))
        self._time(lambda: self._forward(stream, *grid[0]))  # first calls set up libraries
        samples: list[PrefillSample] = []
        end_s = self.clock.now_s() + budget_s
        for cached, new in sorted(grid, key=_work):
            if self._predict_s(samples, cached, new) > end_s - self.clock.now_s():
                break
            time_s = self._time(lambda c=cached, n=new: self._forward(stream, c, n))  # type: ignore[misc]
            samples.append(PrefillSample(cached, new, time_s))
            self.progress(f"prefill {new} tokens behind {cached}: {time_s * 1e3:.1f} ms")
        return samples

    def _forward(self, stream: ZeroStream, num_cached: int, num_new: int) -> None:
        tokens = [1 + i % (self.model.spec.vocab_size - 1) for i in range(num_new)]
        self.model.prefill([PrefillItem(tokens, num_cached, 0)], stream)

    def _predict_s(self, samples: list[PrefillSample], cached: int, new: int) -> float:
        """At most about in proportion to the work; the first few are cheap."""
        if len(samples) < MIN_SAMPLES:
            return 0.0
        last = samples[-1]
        return last.time_s * _work((cached, new)) / _work((last.num_cached, last.num_new))

    # -- decode ---------------------------------------------------------------------------------------------------

    def decode(self, budget_s: float) -> list[DecodeSample]:
        spec = self.model.spec
        geometry = spec.geometry(BLOCK_TOKENS)
        num_blocks = max(1, MAX_KV_BYTES // geometry.full_block_bytes)
        shape = (num_blocks, geometry.num_layers, BLOCK_TOKENS, geometry.bytes_per_token_layer)
        pool = torch.zeros(shape, dtype=torch.uint8, device=self.model.device)
        samples: list[DecodeSample] = []
        end_s = self.clock.now_s() + budget_s
        for requests, context in self._decode_grid(num_blocks):
            batch = self._batch(requests, context)
            if not samples:
                self._time(lambda b=batch: self.model.decode(b, pool))  # type: ignore[misc]
            time_s = self._time(lambda b=batch: self.model.decode(b, pool))  # type: ignore[misc]
            samples.append(DecodeSample(requests, requests * context, time_s))
            self.progress(f"decode {requests} requests of {context} tokens: {time_s * 1e3:.1f} ms")
            if len(samples) >= MIN_SAMPLES and self.clock.now_s() > end_s:
                break
        return samples

    def _decode_grid(self, num_blocks: int) -> Iterator[tuple[int, int]]:
        """From cheap to dear, as far as the pool and the model's context go."""
        grid = [(requests, context) for requests in DECODE_REQUESTS for context in CONTEXT_TOKENS]
        for requests, context in sorted(grid, key=lambda point: point[0] * point[1]):
            fits = requests * (context // BLOCK_TOKENS) <= num_blocks and context <= self.model.spec.max_context_tokens
            if fits or (requests, context) == grid[0]:
                yield requests, context

    def _batch(self, requests: int, context: int) -> DecodeBatch:
        """Requests of ``context`` tokens each, the one that is computed included."""
        width, device = max(1, context // BLOCK_TOKENS), self.model.device
        lists = [list(range(row * width, (row + 1) * width)) for row in range(requests)]
        position = min(context, self.model.spec.max_context_tokens) - 1
        return DecodeBatch(
            token_ids=torch.ones(requests, dtype=torch.int64, device=device),
            positions=torch.full((requests,), position, dtype=torch.int64, device=device),
            block_table=torch.tensor(lists, dtype=torch.int32, device=device),
            block_lists=lists,
            position_list=[position] * requests,
        )

    # -- plain rates ----------------------------------------------------------------------------------------------

    def checksum_rate(self) -> float:
        """Bytes per second of the checksum of stored blocks, one thread."""
        data = os.urandom(RATE_BYTES)
        return RATE_BYTES / self._time(lambda: digest_128(data))

    def copy_rate(self) -> float:
        """Bytes per second from pinned host memory, as staging is, to the model's device; or inside host memory."""
        device = self.model.device
        source = torch.ones(RATE_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
        target = torch.zeros(RATE_BYTES, dtype=torch.uint8, device=device)
        return RATE_BYTES / self._time(lambda: target.copy_(source, non_blocking=True))

    def _time(self, work: Callable[[], object]) -> float:
        """Seconds of the fastest repetition."""
        times: list[float] = []
        while not times or (sum(times) < ENOUGH_S and len(times) < MAX_REPEATS):
            self._synchronize()
            start_s = self.clock.now_s()
            work()
            self._synchronize()
            times.append(max(self.clock.now_s() - start_s, 1e-9))
        return min(times)

    def _synchronize(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


def _work(point: tuple[int, int]) -> float:
    """Orders the grid: attention's pairs, and other work as if it were 1024 pairs a token."""
    cached, new = point
    return attention_pairs(cached, new) + 1024.0 * new
