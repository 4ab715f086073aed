"""What makes stored KV of one vLLM server useful to another: weights, layout, and how it was computed."""

from __future__ import annotations

from pathlib import Path

from dualpath.core.keys import Namespace
from dualpath.models.fingerprint import fingerprint_model_dir
from dualpath.vllm.worker.kv_region import VllmKv


def find_namespace(
    model_dir: Path, kv: VllmKv, vllm_version: str, how: tuple[str, str], rank: int, world: int
) -> Namespace:
    """``how``: ``identity.mode`` and ``identity.packing``. Raises UnsupportedModelError for unreadable weights."""
    mode, packing = how
    device = kv.region.storage.device.type
    return Namespace(
        fingerprint_model_dir(model_dir),
        kv.dtype,
        kv.geometry,
        f"vllm-{vllm_version.partition('+')[0]}-{device}-{mode}",
        f"{kv.layout}-{packing}-tp{world}r{rank}",
    )
