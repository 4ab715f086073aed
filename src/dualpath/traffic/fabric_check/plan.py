"""What a check runs: phases of collectives, idle and beside KV by turns, so that a machine's drifts fall on both."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from dualpath.core.errors import ConfigError

KIB = 1024
UNIT_BYTES = 64 * KIB  # one Layer Block of KV
UNITS_PER_TRANSFER = 32
_MIN_TRANSFERS = 2  # two layers in flight, as layer streaming has
_IN_FLIGHT_S = 1e-3  # and at least what the NIC moves meanwhile


class Load(str, Enum):
    """What runs beside the collectives of a phase."""

    IDLE = "idle"
    KV = "kv"
    UNCLASSED_KV = "unclassed_kv"  # KV in the collectives' own class: what it would be like without classes


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPlan:
    """The same on every rank. Collectives are all-to-alls of ``message_bytes`` (sum over all destinations)."""

    world: int
    nic_bytes_per_s: float  # rate of a compute NIC, each direction
    message_bytes: int = 256 * KIB
    period_s: float = 5e-3
    phase_s: float = 5.0
    num_rounds: int = 3
    contrast: bool = False
    deadline_s: float = 30.0  # of every single wait

    def __post_init__(self) -> None:
        for field, value, low, high in (
            ("world", self.world, 2, 1024),
            ("message-kib", self.message_bytes / KIB, self.world / KIB, 1 << 20),
            ("period-ms", self.period_s * 1e3, 0.1, 10_000),
            ("phase-s", self.phase_s, 0.1, 3600),
            ("rounds", self.num_rounds, 1, 1000),
            ("nic-mbps", self.nic_bytes_per_s * 8 / 1e6, 1, 1e7),
            ("deadline-s", self.deadline_s, 1, 3600),
        ):
            if not low <= value <= high:
                raise ConfigError(f"--{field}: must be {low:g} to {high:g}, not {value:g}")
        if self.num_ops < 20:
            raise ConfigError(f"--phase-s: {self.phase_s:g} s has only {self.num_ops} collectives; 20 are needed")
        if self.offered_bytes_per_s > self.nic_bytes_per_s / 2:
            raise ConfigError(
                f"--period-ms: collectives of {self.message_bytes // KIB} KiB every {self.period_s * 1e3:g} ms would "
                f"take more than half of a NIC of {self.nic_bytes_per_s * 8 / 1e6:g} Mbit/s"
            )

    @property
    def phases(self) -> tuple[Load, ...]:
        loads = (Load.IDLE, Load.KV, Load.UNCLASSED_KV) if self.contrast else (Load.IDLE, Load.KV)
        return loads * self.num_rounds

    @property
    def num_ops(self) -> int:
        """Collectives in a phase: a number and not a time, since all ranks must make the same."""
        return round(self.phase_s / self.period_s)

    @property
    def sent_bytes(self) -> int:
        """What one collective sends through each NIC: a rank keeps its own part."""
        return self.message_bytes // self.world * (self.world - 1)

    @property
    def offered_bytes_per_s(self) -> float:
        return self.sent_bytes / self.period_s

    @property
    def num_transfers(self) -> int:
        """KV transfers that a rank keeps in flight."""
        wanted = self.nic_bytes_per_s * _IN_FLIGHT_S / (UNIT_BYTES * UNITS_PER_TRANSFER)
        return max(_MIN_TRANSFERS, int(wanted) + 1)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
