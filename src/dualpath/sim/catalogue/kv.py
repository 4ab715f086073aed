"""KV-cache bytes per token, by dtype."""

from __future__ import annotations

from dualpath.core.errors import ConfigError
from dualpath.sim.catalogue.attention import GroupedQuery, Latent
from dualpath.sim.catalogue.convention import PHYSICAL, Convention, WindowedKv
from dualpath.sim.catalogue.shape import ModelShape

ELEM_BYTES = {"bf16": 2, "fp16": 2, "fp8": 1}
KV_DTYPES = tuple(ELEM_BYTES)
SCALE_BYTES = 4  # fp32, one for SCALE_ELEMS fp8 elements (FlashMLA README, "FP8 KV cache")
SCALE_ELEMS = 128


def kv_row_bytes(model: ModelShape, kv_dtype: str, *, index_keys: bool = True) -> int:
    """Bytes of one token in one layer.

    Grouped-query attention in FP8 is scaled per tensor: nothing per token. Latent attention in FP8 is FlashMLA's layout
    (README, "FP8 KV cache": 512 bytes of latent, 16 of scales, 128 of rotary key that stays BF16 = 656). An indexer's
    keys are FP8 with scales whatever the latent's dtype (DeepSeek-V3.2-Exp, ``inference/model.py``).

    Raises ConfigError for a dtype that is none of ``KV_DTYPES``.
    """
    if kv_dtype not in ELEM_BYTES:
        raise ConfigError(f"kv_dtype must be one of {', '.join(KV_DTYPES)}, not {kv_dtype!r}")
    attention = model.attention
    if isinstance(attention, GroupedQuery):
        return attention.row_elems * ELEM_BYTES[kv_dtype]
    row = _latent_bytes(attention, kv_dtype)
    if index_keys and attention.indexer is not None:
        row += _scaled_bytes(attention.indexer.head_dim)
    return row


def index_row_bytes(model: ModelShape) -> int:
    """The indexer's part of a row; 0 without an indexer."""
    return 0 if model.indexer is None else _scaled_bytes(model.indexer.head_dim)


def kv_bytes_per_token(model: ModelShape, kv_dtype: str, convention: Convention = PHYSICAL) -> int:
    """All layers together, of a token deep in the context (outside every sliding window)."""
    layers = model.num_layers if convention.windowed_kv is WindowedKv.STORED else model.full_layers
    return layers * kv_row_bytes(model, kv_dtype, index_keys=convention.index_keys)


def kv_bytes(model: ModelShape, kv_dtype: str, num_tokens: int, convention: Convention = PHYSICAL) -> int:
    """Bytes to load for a context of ``num_tokens``."""
    in_window = {
        WindowedKv.NONE: 0,
        WindowedKv.WINDOW: min(num_tokens, model.window_tokens),
        WindowedKv.STORED: num_tokens,
    }[convention.windowed_kv]
    row = kv_row_bytes(model, kv_dtype, index_keys=convention.index_keys)
    return row * (model.full_layers * num_tokens + model.windowed_layers * in_window)


def _latent_bytes(attention: Latent, kv_dtype: str) -> int:
    rope = attention.rope_dim * ELEM_BYTES["bf16"]
    if kv_dtype == "fp8":
        return _scaled_bytes(attention.latent_dim) + rope
    return attention.latent_dim * ELEM_BYTES[kv_dtype] + rope


def _scaled_bytes(num_elems: int) -> int:
    return num_elems + SCALE_BYTES * -(-num_elems // SCALE_ELEMS)
