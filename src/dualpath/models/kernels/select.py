"""Which kernels for which device: the one place that picks."""

from __future__ import annotations

import torch

from dualpath.models.kernels.contract import Kernels


def select_kernels(device: torch.device) -> Kernels:
    """The fastest kernels known to be right on ``device``. CUDA code is imported only for CUDA devices."""
    if device.type == "cpu":
        from dualpath.models.kernels.cpu import CpuKernels

        return CpuKernels()
    if device.type == "cuda":
        from dualpath.models.kernels.cuda import cuda_kernels

        return cuda_kernels(device)
    from dualpath.models.kernels.plain import PlainKernels

    return PlainKernels()
