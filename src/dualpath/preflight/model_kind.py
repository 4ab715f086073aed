"""The model's geometry and namespace on this host, as engines will have them, without its weights in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import AutoConfig

from dualpath.config import ServeConfig
from dualpath.core.geometry import KvGeometry
from dualpath.core.keys import Namespace
from dualpath.models.families import check_model_dir, layout_of
from dualpath.models.fingerprint import fingerprint_model_dir
from dualpath.models.layout import row_bytes
from dualpath.models.load import max_context_tokens, read, torch_dtype
from dualpath.preflight.line import Line, fail, ok


@dataclass(frozen=True, slots=True)
class ModelKind:
    """What must be equal on all nodes, and how long a context the model takes."""

    namespace: Namespace
    max_context_tokens: int


def model_kind(config: ServeConfig, device: str) -> ModelKind:
    """``device``: "cpu", "cuda" or "cuda:N". Reads headers and samples of the weights. Raises ConfigError."""
    check_model_dir(config.model.dir)
    found = read(
        lambda: AutoConfig.from_pretrained(config.model.dir, local_files_only=True, trust_remote_code=False),
        config.model.dir,
    )
    dtype = torch_dtype(config.model.dtype, found)
    geometry = KvGeometry(found.num_hidden_layers, config.store.block_tokens, row_bytes(layout_of(found, dtype)))
    namespace = Namespace(
        fingerprint_model_dir(config.model.dir),
        str(dtype).removeprefix("torch."),
        geometry,
        device.partition(":")[0],
    )
    return ModelKind(namespace, max_context_tokens(found))


def describe(kind: ModelKind) -> Line:
    geometry = kind.namespace.geometry
    return ok(
        "geometry",
        f"{geometry.num_layers} layers, {geometry.bytes_per_token:,} bytes per token in {kind.namespace.kv_dtype}, "
        f"Full Blocks of {geometry.block_tokens} tokens; namespace {kind.namespace.digest.hex()[:16]}",
    )


def resolve(device: str) -> str:
    """ "auto" is what there is."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def check_device(device: str, num_engines: int) -> Iterator[Line]:
    """``device`` as configured."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.startswith("cuda") and not there:
        yield fail("device", f"{device} is asked for and there is no CUDA device", "[model] device, or the driver")
    elif device.startswith("cuda:") and int(device.partition(":")[2]) >= there:
        yield fail("device", f"{device} is asked for and there are {there}", "[model] device counts from 0")
    elif there and device != "cpu":
        yield ok("device", f"{there} CUDA devices for {num_engines} engines: {torch.cuda.get_device_name(0)}")
    else:
        yield ok("device", "cpu")
