"""Compiles the paged kernel for GPUs, which takes none: run without TRITON_INTERPRET."""

from __future__ import annotations

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dualpath.models.kernels import paged_decode

STRIDES = "q_request q_head k_block k_token k_head v_block v_token v_head table_request"
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # that one program can have
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}


def compile_for(capability: int, dim: int, value_dim: int, group: int, dtype: torch.dtype) -> None:
    kernel = paged_decode._attend_split
    cut = paged_decode._Cut.of(dim, value_dim, group, dtype, shared=value_dim < dim)
    constants = {
        "GROUP": group, "DIM": dim, "VALUE_DIM": value_dim, "MAIN": cut.main, "REST": cut.rest, "V_MAIN": cut.v_main,
        "V_REST": cut.v_rest, "SHARED": cut.shared, "HEADS": cut.heads, "TOKENS": cut.tokens,
        "SPLIT_TOKENS": 256, "SPLITS": 32, "IS_REAL": True,
    }  # fmt: skip
    types = dict.fromkeys(("q", "k", "v"), TYPES[dtype]) | {"table": "*i32", "lengths": "*i64", "out": "*fp32"}
    types |= {"lse": "*fp32", "scale": "fp32"}
    types |= dict.fromkeys(["window", "block_tokens", "num_splits", *STRIDES.split()], "i32")
    divisible = [*types.keys() - {"scale", "window", "num_splits"}]
    found = triton.compile(
        ASTSource(
            fn=kernel,
            signature=types | dict.fromkeys(constants, "constexpr"),
            constexprs=constants,
            attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible},
        ),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 4, "num_stages": cut.stages},
    )
    assert found.asm["cubin"]
    assert found.metadata.shared <= SHARED_BYTES[capability], found.metadata.shared
    assert dtype == torch.float32 or "mma." in found.asm["ptx"]
    print(f"ok: sm_{capability}, heads of {dim}/{value_dim}, {found.metadata.shared} bytes of shared memory")


if __name__ == "__main__":
    compile_for(80, 128, 128, 4, torch.bfloat16)
    compile_for(90, 576, 512, 128, torch.bfloat16)
