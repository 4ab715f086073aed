"""Whether this host can copy between host and device the way that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dualpath.core.errors import ConfigError
from dualpath.launch.places import Place

RDMA_DEVICES = Path("/sys/class/infiniband")  # where Linux lists them, InfiniBand and RoCE alike


def check_copies(copies: str | None, places: Sequence[Place]) -> None:
    """Raises ConfigError with the reason where ``[memory] copies`` cannot be had. None can always be."""
    if copies == "nic" and not rdma_devices():
        raise ConfigError(
            f"[memory] copies: nic needs an RDMA device, and this host has none ({RDMA_DEVICES} is empty or missing); "
            "leave copies out"
        )
    for place in places:
        if copies == "cuda" and not place.device.startswith("cuda"):
            raise ConfigError(f"[memory] copies: cuda needs a CUDA device, and {place.engine_id} is on {place.device}")
        if copies == "memcpy" and place.device != "cpu":
            raise ConfigError(
                f"[memory] copies: memcpy reaches host memory only, and {place.engine_id} is on {place.device}"
            )


def rdma_devices() -> list[str]:
    """Their names, e.g. mlx5_0."""
    return sorted(path.name for path in RDMA_DEVICES.iterdir()) if RDMA_DEVICES.is_dir() else []
