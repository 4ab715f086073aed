"""Step 1: what is installed, what the Flash operator takes, whether NIXL is there, how fast the device's memory is."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from dualpath.core.errors import ConfigError
from dualpath.models.kernels.flash import flash_op
from dualpath.store.nixl_api import nixl_api
from dualpath.validation.gpu.result import Findings
from dualpath.validation.gpu.setting import Setting

_PACKAGES = ("torch", "transformers", "triton", "numpy", "accelerate", "nixl-cu12", "nixl-cu13", "xxhash")


def run(setting: Setting, found: Findings) -> None:
    table = found.table("Installed", "what", "version")
    table.rows.append(["Python", sys.version.split()[0]])
    table.rows.append(["system", platform.platform()])
    table.rows += [[name, _version(name)] for name in _PACKAGES]
    table.rows.append(["CUDA of torch", torch.version.cuda or "none"])
    if setting.device.type == "cuda":
        about = torch.cuda.get_device_properties(setting.device)
        table.rows.append(
            ["device", f"{about.name}, sm_{about.major}{about.minor}, {about.total_memory / 2**30:.1f} GiB"]
        )
    found.notes.append(
        f"aten::_flash_attention_forward takes: {', '.join(a.name for a in flash_op()._schema.arguments)}"
    )
    try:
        found.notes.append(f"NIXL: {nixl_api().__name__}")
    except ConfigError as error:
        found.notes.append(f"NIXL: {error}")
    num_bytes = setting.scale.copy_bytes
    source = torch.ones(num_bytes, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    setting.rates.memory = 2 * num_bytes / setting.time_s(lambda: target.copy_(source))
    found.verdict("memory of the device, read and write, GB/s", round(setting.rates.memory / 1e9, 1))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
