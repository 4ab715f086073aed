"""How much memory each engine gets: pure arithmetic from the settings and the model's geometry."""

from __future__ import annotations

from dataclasses import dataclass

from dualpath.config import MemoryConfig
from dualpath.core.errors import ConfigError
from dualpath.core.geometry import KvGeometry

DEFAULT_CONTEXT_TOKENS = 32768
DEFAULT_CPU_KV_BYTES = 2 * 1024**3
CPU_KV_CONTEXTS = 8  # longest contexts that a decode engine on a CPU holds by default
STAGED_CONTEXTS = 4  # longest contexts that a staging buffer holds: more would not be read any sooner
NUM_WRITE_SLOTS = 8  # staging slots of a decode engine set aside for persistence


@dataclass(frozen=True, slots=True)
class Sizes:
    """All in tokens or slots of one Full Block; fixed for the life of the process."""

    max_context_tokens: int  # prompt + answer of one request
    prefill_slots: int
    decode_slots: int
    workspace_tokens: int  # rows of each of a prefill engine's device workspaces, two or one per layer
    decode_kv_tokens: int


def derive_sizes(
    memory: MemoryConfig, geometry: KvGeometry, model_context_tokens: int, free_device_bytes: int | None = None
) -> Sizes:
    """Sizes from settings. ``free_device_bytes``: what a CUDA device has left for KV; None on a CPU.

    A context asked for must fit every buffer, or ConfigError; one that was not asked for is cut to what fits.
    """
    wanted = memory.max_context_tokens
    if wanted is not None and wanted > model_context_tokens:
        raise ConfigError(f"max-context-tokens {wanted} is beyond the model's limit of {model_context_tokens}")
    context = wanted or min(model_context_tokens, DEFAULT_CONTEXT_TOKENS)
    slots = {
        "prefill-staging-bytes": memory.prefill_staging_bytes // geometry.full_block_bytes,
        "decode-staging-bytes": memory.decode_staging_bytes // geometry.full_block_bytes,
    }
    # The answer's tokens never pass through the buffers, but a resumed request's prompt contains them.
    for name, count in slots.items():
        fits = count * geometry.block_tokens
        if wanted is not None and fits < context:
            needed = geometry.blocks_for(context) * geometry.full_block_bytes
            raise ConfigError(f"{name} holds {fits} tokens, a context of {context} needs {needed} bytes")
        context = min(context, fits)
    if context < 2:
        raise ConfigError(f"staging buffers hold less than one block of {geometry.full_block_bytes} bytes")
    kv_tokens = memory.decode_kv_tokens or _default_kv_tokens(geometry, context, free_device_bytes)
    if kv_tokens < context + 1:
        raise ConfigError(f"decode-kv-tokens {kv_tokens} holds less than one context of {context} tokens and a token")
    if memory.prefill_kv_tokens is not None and memory.prefill_kv_tokens < context:
        raise ConfigError(f"prefill-kv-tokens {memory.prefill_kv_tokens} holds less than a context of {context} tokens")
    workspace = geometry.blocks_for(memory.prefill_kv_tokens or context) * geometry.block_tokens
    most_slots = STAGED_CONTEXTS * geometry.blocks_for(context)
    prefill_slots, decode_slots = (min(count, most_slots) for count in slots.values())
    return Sizes(context, prefill_slots, decode_slots, workspace, kv_tokens)


def _default_kv_tokens(geometry: KvGeometry, context: int, free_device_bytes: int | None) -> int:
    """All that a GPU has left; on a CPU no more than a few contexts, as the memory is everybody's."""
    if free_device_bytes is None:
        available_tokens = min(DEFAULT_CPU_KV_BYTES // geometry.bytes_per_token, CPU_KV_CONTEXTS * context)
    else:
        available_tokens = free_device_bytes // geometry.bytes_per_token
    return max(available_tokens, context + geometry.block_tokens)
