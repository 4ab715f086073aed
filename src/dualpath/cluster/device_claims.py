"""Which CUDA devices of a host its other node processes have taken: each holds a lock file for as long as it lives."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

_held: list[int] = []  # descriptors of our locks: the kernel lets go of them when this process ends, however it ends


def claim_devices(num_engines: int, num_devices: int, folder: Path | None = None) -> list[int]:
    """A device for each engine: free ones first, in order; where there are too few, all share those from the first.

    Devices count as this process sees them; ``CUDA_VISIBLE_DEVICES`` says which they are.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"dualpath-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    claimed: list[int] = []
    for number in range(num_devices):
        if len(claimed) < num_engines and _lock(folder / _name_of(number)):
            claimed.append(number)
    usable = claimed or list(range(num_devices))
    return [usable[index % len(usable)] for index in range(num_engines)]


def _name_of(number: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    name = visible[number].strip() if number < len(visible) and visible[number].strip() else str(number)
    return name.replace("/", "_")


def _lock(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    _held.append(descriptor)
    return True
