"""The Triton kernel of paged decode, run by Triton's interpreter, and compiled for GPUs that are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")  # interpreted: tests/conftest.py says so before anybody imports it

from tests.models import compile_kernel
from tests.models.paged_cases import Case, batch_of

from dualpath.models.kernels.paged_decode import MIN_SPLIT_TOKENS, attend_paged
from dualpath.models.kernels.plain import PlainKernels
from dualpath.models.layout import GqaLayout, MlaLayout

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the kernel itself"),
    pytest.mark.filterwarnings("ignore:divide by zero"),  # numpy's: log2 of a split that has seen nothing
]


@pytest.mark.parametrize("seed", range(1000, 1012))
def test_random_shapes_agree_with_plain_attention(seed: int) -> None:
    Case.random(seed, max_tokens=400).check()


def test_the_latent_heads_of_full_size() -> None:
    """576 for keys, 512 of them for values, in more splits than one."""
    Case(MlaLayout(torch.bfloat16, 512, 64), 16, 576, 512, 64, [1, MIN_SPLIT_TOKENS + 5], None, 1).check()


def test_a_request_alone_and_in_a_batch_come_to_the_same_bits() -> None:
    """Also where the batch has more splits than the request has."""
    layout = GqaLayout(torch.bfloat16, 2, 32)
    case = Case(layout, 4, 32, 32, 16, [300, 600], None, 3)
    q, pages, batch = case.inputs()
    both = attend_paged(q, *layout.split(pages), batch, None, 0.2, 32)
    table = batch.block_table[:1].tolist()
    alone = attend_paged(q[:1], *layout.split(pages), batch_of(table, [300], 16), None, 0.2, 32)
    assert torch.equal(both[0][:1], alone[0])
    assert torch.equal(both[1][:1], alone[1])


def test_a_pool_of_more_than_two_to_the_31_elements_is_addressed() -> None:
    """Sparse: one block far behind, in memory that is never touched elsewhere."""
    layout, far = GqaLayout(torch.float16, 1, 64), (1 << 31) // (16 * 128) + 5
    pages = torch.empty((far + 1, 16, layout.row_elems), dtype=torch.float16)
    pages[far] = torch.randn(16, layout.row_elems).half()
    batch, q = batch_of([[far]], [9], 16), torch.randn(1, 4, 64).half()
    ours = attend_paged(q, *layout.split(pages), batch, None, 0.125, 64)
    right = PlainKernels().attend_paged(q, pages, layout.split, batch, None, 0.125)
    torch.testing.assert_close(ours, right, atol=1e-2, rtol=1e-2)


def test_it_compiles_for_gpus() -> None:
    """To machine code for sm_80 and sm_90, with matrix instructions and within their shared memory."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    root = Path(compile_kernel.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, compile_kernel.__file__],
        capture_output=True,
        text=True,
        env=environment,
        cwd=root,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("ok") == 2
