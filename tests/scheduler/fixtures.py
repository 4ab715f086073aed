"""A small namespace, requests and clusters of fake engines for the scenarios."""

from __future__ import annotations

from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey, RequestId
from dualpath.core.keys import Namespace, chain_keys, root_key
from dualpath.core.request import Request, SamplingParams

BLOCK = 8
GEOMETRY = KvGeometry(num_layers=2, block_tokens=BLOCK, bytes_per_token_layer=16)
NAMESPACE = Namespace("model", "float32", GEOMETRY, "cpu")


def make_request(
    name: str = "r", num_prompt: int = 20, max_tokens: int = 5, *, prompt: tuple[int, ...] | None = None, seed: int = 3
) -> Request:
    tokens = prompt if prompt is not None else tuple(range(num_prompt))
    return Request(RequestId(name), tokens, SamplingParams(max_tokens=max_tokens, seed=seed))


def keys_of(tokens: tuple[int, ...]) -> list[BlockKey]:
    return chain_keys(root_key(NAMESPACE), tokens, BLOCK)
