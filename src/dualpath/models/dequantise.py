"""Checkpoints as released in FP8 (DeepSeek) or MXFP4 (GPT-OSS), turned into plain weights by transformers' own loaders.

The model computes in bfloat16 then and takes the memory of it: what serves quantised weights as they are is vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def dequantising(model_dir: Path) -> Any:
    """The ``quantization_config`` for ``from_pretrained``; None for a checkpoint of plain weights."""
    found = json.loads((model_dir / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    if not found:
        return None
    from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

    if found["quant_method"] == "mxfp4":
        return Mxfp4Config(dequantize=True)
    return FineGrainedFP8Config(weight_block_size=tuple(found["weight_block_size"]), dequantize=True)


@contextmanager
def blocks_of_one_size(quantised: Any) -> Iterator[None]:
    """While FP8 weights are loaded: a block is as large as the checkpoint says, also the last one of a row or column.

    transformers divides a weight by its grid of scales instead, which is another size where the last block is not
    whole: DeepSeek-V3's ``kv_a_proj_with_mqa`` of 576 rows is refused then, and 192 rows would be scaled wrongly.
    """
    block = getattr(quantised, "weight_block_size", None)
    if block is None:
        yield
        return
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    kind: Any = Fp8Dequantize
    original = kind._dequantize_one

    def dequantise(self: Any, weight: torch.Tensor, scales: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        rows, columns = weight.shape[-2:]
        grid = -(-rows // block[0]), -(-columns // block[1])
        whole = grid[0] * block[0], grid[1] * block[1]
        if tuple(scales.shape[-2:]) != grid or whole == (rows, columns) or not weight.is_floating_point():
            return original(self, weight, scales, *rest, **named)
        # Some releases hand FP8 over, which cannot be filled in, others the same numbers in bfloat16.
        values = weight.view(torch.uint8) if weight.element_size() == 1 else weight
        padded = torch.zeros((*weight.shape[:-2], *whole), dtype=values.dtype, device=weight.device)
        padded[..., :rows, :columns] = values
        found: torch.Tensor = original(self, padded.view(weight.dtype), scales, *rest, **named)
        return found[..., :rows, :columns].contiguous()

    kind._dequantize_one = dequantise
    try:
        yield
    finally:
        kind._dequantize_one = original
