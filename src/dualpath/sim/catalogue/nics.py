"""Network cards: storage NICs (north-south) and compute NICs (east-west) come from the same few generations.

Line rates; what of it arrives as payload is a matter of the fabric and is the caller's to say.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Nic:
    name: str
    gbit_per_s: int  # each direction
    source: str

    @property
    def bytes_per_s(self) -> float:
        return self.gbit_per_s * 1e9 / 8


_ALL = (
    Nic("100G", 100, "NVIDIA ConnectX-5 datasheet (EDR InfiniBand, 100GbE)"),
    Nic("200G", 200, "NVIDIA ConnectX-6 datasheet (HDR InfiniBand, 200GbE)"),
    Nic("400G", 400, "NVIDIA ConnectX-7 datasheet (NDR InfiniBand, 400GbE)"),
    Nic("800G", 800, "NVIDIA ConnectX-8 SuperNIC datasheet (XDR InfiniBand, 2 x 400GbE)"),
)
NICS = {nic.name: nic for nic in _ALL}
