"""What makes stored KV of one vLLM server useful to another: weights, layout, and how it was computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dualpath.core.keys import Namespace
from dualpath.models.fingerprint import fingerprint_model_dir
from dualpath.vllm.worker.kv_region import VllmKv


def find_namespace(
    model_dir: Path, kv: VllmKv, vllm_version: str, how: tuple[str, str], num_ranks: int, *, is_same: bool = False
) -> Namespace:
    """Of the whole server, whose blocks consist of its ranks' parts. ``kv``: of any of its ranks. ``how``:
    ``identity.mode`` and ``identity.packing``. ``is_same``: every rank has the same KV (MLA), so one's is the block.

    Raises UnsupportedModelError for unreadable weights.
    """
    mode, packing = how
    device = kv.region.storage.device.type
    layout, geometry = f"{kv.layout}-{packing}-tp{num_ranks}", kv.geometry
    if num_ranks == 1 or is_same:
        layout, num_parts = f"{layout}r0", 1
    else:
        num_parts = num_ranks
        geometry = replace(geometry, bytes_per_token_layer=num_ranks * geometry.bytes_per_token_layer)
    return Namespace(
        fingerprint_model_dir(model_dir),
        kv.dtype,
        geometry,
        f"vllm-{vllm_version.partition('+')[0]}-{device}-{mode}",
        layout,
        num_parts,
    )
