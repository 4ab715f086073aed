"""The paged kernel against plain attention over random shapes: a few as tests, any number as a program.

PYTHONPATH=src TRITON_INTERPRET=1 python -m tests.models.paged_cases 0 500
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass

import torch

from dualpath.models.kernels.contract import PagedBatch
from dualpath.models.kernels.merge import Attended, apply_sinks
from dualpath.models.kernels.plain import PlainKernels
from dualpath.models.layout import GqaLayout, KvLayout, MlaLayout

MAX_TOKENS = 1500


@dataclass
class Case:
    layout: KvLayout
    heads: int
    dim: int
    value_dim: int
    block_tokens: int
    lengths: list[int]
    window: int | None
    seed: int

    @staticmethod
    def random(seed: int, max_tokens: int = MAX_TOKENS) -> Case:
        draw = random.Random(seed)
        dtype = draw.choice([torch.float32, torch.bfloat16, torch.float16])
        layout: KvLayout
        if draw.random() < 0.3:
            latent, rope = draw.choice([512, 64, 32, 48]), draw.choice([64, 16, 8])
            layout = MlaLayout(dtype, latent, rope, draw.choice([0, 8]))
            heads, dim, value_dim = draw.choice([1, 4, 16, 20, 128]), latent + rope, latent
        else:
            kv_heads, dim = draw.choice([1, 2, 3, 8]), draw.choice([8, 16, 24, 64, 80, 96, 128, 256])
            layout, heads, value_dim = GqaLayout(dtype, kv_heads, dim), kv_heads * draw.choice([1, 2, 4, 7, 16]), dim
        block_tokens = draw.choice([1, 7, 16, 64, 100, 256])
        lengths = [
            min(max_tokens, draw.choice([1, block_tokens, draw.randint(1, 300), draw.randint(1, max_tokens)]))
            for _ in range(draw.choice([1, 2, 5]))
        ]
        window = draw.choice([None, None, 1, draw.randint(1, 400)])
        return Case(layout, heads, dim, value_dim, block_tokens, lengths, window, seed)

    def inputs(self, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, PagedBatch]:
        """Queries (strided), one layer's pages, where contexts lie: NaN wherever nothing was written."""
        draw, tokens, dtype = random.Random(self.seed), self.block_tokens, self.layout.dtype
        torch.manual_seed(self.seed)
        counts = [-(-length // tokens) for length in self.lengths]
        free = list(range(sum(counts) + 2))
        draw.shuffle(free)
        pool = torch.full((len(free), 2, tokens, self.layout.row_elems), torch.nan).to(dtype)
        table = []
        for length, count in zip(self.lengths, counts, strict=True):
            mine, free = free[:count], free[count:]
            table.append(mine + [0] * (max(counts) - count))
            for index, block in enumerate(mine):
                used = min(tokens, length - index * tokens)
                pool[block, :, :used] = torch.randn(2, used, self.layout.row_elems).to(dtype)
        q = torch.randn(self.heads, len(self.lengths), self.dim).to(dtype).transpose(0, 1)
        return q.to(device), pool.to(device)[:, 1], batch_of(table, self.lengths, tokens, device)

    def check(self, device: str = "cpu") -> None:
        """Raises AssertionError where the kernel differs from the plain one, sinks included."""
        from dualpath.models.kernels.paged_decode import attend_paged

        q, pages, batch = self.inputs(device)
        scale, sinks = self.dim**-0.5, torch.randn(self.heads, device=device)
        ours = attend_paged(q, *self.layout.split(pages), batch, self.window, scale, self.value_dim)
        out, lse = PlainKernels().attend_paged(q, pages, self.layout.split, batch, self.window, scale)
        right: Attended = out[..., : self.value_dim], lse
        tolerance = 2e-5 if self.layout.dtype == torch.float32 else 2e-2
        for mine, theirs in (
            (ours[0], right[0]),
            (ours[1], right[1]),
            (apply_sinks(*ours, sinks), apply_sinks(*right, sinks)),
        ):
            torch.testing.assert_close(
                mine.float(), theirs.float(), atol=tolerance, rtol=tolerance, msg=lambda text: f"{self}: {text}"
            )


def batch_of(table: list[list[int]], lengths: list[int], block_tokens: int, device: str = "cpu") -> PagedBatch:
    on_device = torch.tensor(table, dtype=torch.int32, device=device)
    return PagedBatch(on_device, torch.tensor(lengths, device=device), lengths, block_tokens)


def main(first: int, end: int) -> None:
    for seed in range(first, end):
        Case.random(seed).check()
    print(f"{end - first} random shapes agree")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
