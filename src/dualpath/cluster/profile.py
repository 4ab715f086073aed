"""What a model's profile on a machine says, and the file it is kept in: ``dualpath-profile.json`` beside the weights.

A profile holds for the model, number format, device, threads and torch version that it was measured with, and for
nothing else; ``mismatch`` says what differs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from dualpath.core.errors import ConfigError
from dualpath.models.seam import Model
from dualpath.scheduler.policy.cost import DecodeCost, ForwardCost

FILE_NAME = "dualpath-profile.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Setup:
    """What a measurement depends on."""

    fingerprint: str
    kv_dtype: str
    device: str  # its name, e.g. "NVIDIA H100 80GB HBM3"
    threads: int  # of the model; 0 where they do not matter
    torch: str

    @staticmethod
    def of(model: Model, threads: int) -> Setup:
        on_cuda = model.device.type == "cuda"
        device = torch.cuda.get_device_name(model.device) if on_cuda else _cpu_name()
        kv_dtype = str(model.spec.kv_dtype).removeprefix("torch.")
        return Setup(model.spec.fingerprint, kv_dtype, device, 0 if on_cuda else threads, str(torch.__version__))


@dataclass(frozen=True, slots=True)
class PrefillSample:
    num_cached: int
    num_new: int
    time_s: float


@dataclass(frozen=True, slots=True)
class DecodeSample:
    num_requests: int
    num_context_tokens: int  # of all requests together
    time_s: float


@dataclass(frozen=True, slots=True)
class Profile:
    """One engine's speeds."""

    setup: Setup
    prefill_cost: ForwardCost
    decode_cost: DecodeCost
    beta_tokens: int  # new tokens that one engine computes in 5 s (paper section 6)
    checksum_bytes_per_s: float
    copy_bytes_per_s: float  # between the staging buffer and the device
    prefill: tuple[PrefillSample, ...] = ()  # what the costs were fitted to
    decode: tuple[DecodeSample, ...] = ()

    def mismatch(self, setup: Setup) -> str | None:
        """The first thing that differs, in words; None: the profile holds."""
        for name in ("fingerprint", "kv_dtype", "device", "threads", "torch"):
            mine, other = getattr(self.setup, name), getattr(setup, name)
            if mine != other:
                return f"{name} {mine}, here {other}"
        return None

    def write(self, path: Path) -> None:
        """Appears whole or not at all."""
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            scratch.write_text(text + "\n", encoding="utf-8")
            scratch.replace(path)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror or error}; --out names another place") from error

    @staticmethod
    def read(path: Path) -> Profile:
        """Raises ConfigError for a file that is no profile of this format."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.pop("format") != FORMAT:
                raise ValueError("another format")
            return Profile(
                setup=Setup(**found.pop("setup")),
                prefill_cost=ForwardCost(**found.pop("prefill_cost")),
                decode_cost=DecodeCost(**found.pop("decode_cost")),
                prefill=tuple(PrefillSample(**sample) for sample in found.pop("prefill")),
                decode=tuple(DecodeSample(**sample) for sample in found.pop("decode")),
                **found,
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{path} is not a profile: {error}") from None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
