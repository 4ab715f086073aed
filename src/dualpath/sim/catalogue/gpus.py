"""GPUs: dense peak FLOPS by dtype, memory, and the compute NIC that comes with each in the usual node.

Datasheets of Hopper and Blackwell state FLOPS with 2:4 sparsity; dense is half of it. Figures of a system's datasheet
are divided by its GPUs. H800 and H20 have no public NVIDIA datasheet: their entries say where the figures come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dualpath.core.errors import ConfigError
from dualpath.sim.catalogue.nics import NICS, Nic

TERA = 1e12


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    dense_flops_per_s: Mapping[str, float]  # by dtype: bf16 and what the tensor cores have below it
    hbm_bytes: float
    hbm_bytes_per_s: float
    cnic: Nic  # one for each GPU
    gpus_per_node: int
    source: str

    def flops_per_s(self, dtype: str) -> float:
        """Raises ConfigError for a dtype that this GPU's tensor cores do not have."""
        if dtype not in self.dense_flops_per_s:
            raise ConfigError(f"{self.name} has no {dtype} FLOPS: one of {', '.join(self.dense_flops_per_s)}")
        return self.dense_flops_per_s[dtype]

    def compute_dtype(self, weight_dtype: str) -> str:
        """The dtype that multiplies weights of ``weight_dtype``: theirs where the tensor cores have it, else bf16."""
        return weight_dtype if weight_dtype in self.dense_flops_per_s else "bf16"


def _tflops(**by_dtype: float) -> Mapping[str, float]:
    return MappingProxyType({dtype: tflops * TERA for dtype, tflops in by_dtype.items()})


_HOPPER = _tflops(bf16=989.5, fp8=1979.0)

_ALL = (
    Gpu(
        name="A100",
        dense_flops_per_s=_tflops(bf16=312.0),
        hbm_bytes=80e9,
        hbm_bytes_per_s=2.039e12,
        cnic=NICS["200G"],
        gpus_per_node=8,
        source="NVIDIA A100 80GB SXM datasheet; NIC: DGX A100 datasheet (8 x ConnectX-6 200 Gb/s)",
    ),
    Gpu(
        name="H100",
        dense_flops_per_s=_HOPPER,
        hbm_bytes=80e9,
        hbm_bytes_per_s=3.35e12,
        cnic=NICS["400G"],
        gpus_per_node=8,
        source="NVIDIA H100 SXM datasheet (1,979 and 3,958 TFLOPS with sparsity); NIC: DGX H100 datasheet",
    ),
    Gpu(
        name="H800",
        dense_flops_per_s=_HOPPER,
        hbm_bytes=80e9,
        hbm_bytes_per_s=3.35e12,
        cnic=NICS["400G"],
        gpus_per_node=8,
        source="no public datasheet: an H100 SXM with 400 GB/s of NVLink; node as in DeepSeek's arXiv 2505.09343",
    ),
    Gpu(
        name="H200",
        dense_flops_per_s=_HOPPER,
        hbm_bytes=141e9,
        hbm_bytes_per_s=4.8e12,
        cnic=NICS["400G"],
        gpus_per_node=8,
        source="NVIDIA H200 SXM datasheet; NIC: DGX H200 datasheet",
    ),
    Gpu(
        name="H20",
        dense_flops_per_s=_tflops(bf16=148.0, fp8=296.0),
        hbm_bytes=96e9,
        hbm_bytes_per_s=4.0e12,
        cnic=NICS["400G"],
        gpus_per_node=8,
        source="no public datasheet: system vendors' tables of the HGX H20; NIC as in H100 nodes (assumed)",
    ),
    Gpu(
        name="B200",
        dense_flops_per_s=_tflops(bf16=2250.0, fp8=4500.0, fp4=9000.0),
        hbm_bytes=180e9,
        hbm_bytes_per_s=8.0e12,
        cnic=NICS["400G"],
        gpus_per_node=8,
        source="NVIDIA DGX B200 datasheet (1,440 GB, 64 TB/s, FP8 72 PFLOPS with sparsity, 8 x ConnectX-7), by 8",
    ),
    Gpu(
        name="GB200",
        dense_flops_per_s=_tflops(bf16=2500.0, fp8=5000.0, fp4=10000.0),
        hbm_bytes=186e9,
        hbm_bytes_per_s=8.0e12,
        cnic=NICS["400G"],
        gpus_per_node=4,
        source="NVIDIA GB200 NVL72 datasheet (FP8 720 PFLOPS with sparsity, 13.4 TB), by 72; a node is a compute tray",
    ),
)
GPUS = {gpu.name: gpu for gpu in _ALL}


def find_gpu(name: str) -> Gpu:
    """Raises ConfigError for a name that is not in the catalogue."""
    try:
        return GPUS[name.upper()]
    except KeyError:
        raise ConfigError(f"gpu must be one of {', '.join(GPUS)}, not {name!r}") from None
