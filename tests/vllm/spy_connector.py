"""A KV connector that moves nothing and looks: plain vLLM's KV, and the blocks of requests that have ended."""

from __future__ import annotations

from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata

kv_caches: list[torch.Tensor] = []  # of each layer ``[blocks, heads, tokens, content]``
ended: list[list[int]] = []  # block ids of each request


class Nothing(KVConnectorMetadata):
    pass


class SpyConnector(KVConnectorBase_V1):
    """For an engine in one process."""

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        globals()["kv_caches"][:] = kv_caches.values()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        pass

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        pass

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        pass

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return Nothing()

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        ended.append(list(block_ids))
        return False, None
