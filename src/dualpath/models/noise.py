"""A model directory like another, with noise on its weights: what a step of training would leave, for trials."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dualpath.models.saved import share_weights


def add_noise(source: Path, target: Path, *, scale: float = 0.02, seed: int = 0) -> Path:
    """Every weight changes by a normal share, ``scale``, of its tensor's deviation. Appears whole or not at all."""
    scratch = target.with_name(f".{target.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(source, scratch)
    generator = torch.Generator().manual_seed(seed)
    for path in sorted(scratch.glob("*.safetensors")):
        tensors = {name: _noisy(tensor, scale, generator) for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    share_weights(scratch)
    scratch.rename(target)
    return target


def _noisy(tensor: torch.Tensor, scale: float, generator: torch.Generator) -> torch.Tensor:
    if not tensor.is_floating_point() or tensor.numel() < 2:
        return tensor
    noise = torch.randn(tensor.shape, generator=generator)
    return (tensor.float() + scale * tensor.float().std() * noise).to(tensor.dtype)
