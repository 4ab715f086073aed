"""How much memory each engine gets: pure arithmetic from the settings and the model's geometry."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dualpath.config import MemoryConfig
from dualpath.core.errors import ConfigError
from dualpath.core.geometry import KvGeometry

DEFAULT_CONTEXT_TOKENS = 32768
DEFAULT_CPU_KV_BYTES = 2 * 1024**3
CPU_KV_CONTEXTS = 8  # longest contexts that a decode engine on a CPU holds by default
STAGED_CONTEXTS = 4  # longest contexts that a staging buffer holds: more would not be read any sooner
NUM_WRITE_SLOTS = 8  # staging slots of a decode engine set aside for persistence
SCRATCH_BYTES = 1024**3  # of each engine on a GPU, for what a forward needs beside weights and KV


@dataclass(frozen=True, slots=True)
class Sizes:
    """All in tokens or slots of one Full Block; fixed for the life of the process."""

    max_context_tokens: int  # prompt + answer of one request
    prefill_slots: int
    decode_slots: int
    workspace_tokens: int  # rows of each of a prefill engine's device workspaces, two or one per layer
    decode_kv_tokens: int
    cut: str | None = None  # why contexts are shorter than the model's, where nobody has asked for that


@dataclass(frozen=True, slots=True)
class DeviceRoom:
    """One CUDA device: the bytes that its engines share, and how many these are."""

    num_bytes: int
    num_prefill: int
    num_decode: int

    def decode_bytes(self, workspace_bytes: int) -> int:
        """For the KV of each decode engine, when each prefill engine has its workspaces."""
        taken = self.num_prefill * workspace_bytes + (self.num_prefill + self.num_decode) * SCRATCH_BYTES
        return max(0, self.num_bytes - taken) // max(1, self.num_decode)


def derive_sizes(
    memory: MemoryConfig,
    geometry: KvGeometry,
    model_context_tokens: int,
    rooms: Collection[DeviceRoom] = (),
    workspace_layers: int = 4,
) -> Sizes:
    """Sizes from settings. ``rooms``: CUDA devices; none on CPUs. ``workspace_layers``: that a prefill engine holds.

    A context asked for must fit every buffer, or ConfigError; one that was not asked for is cut to what fits.
    """
    context, slots, cut = _context(memory, geometry, model_context_tokens)
    workspace = geometry.blocks_for(memory.prefill_kv_tokens or context) * geometry.block_tokens
    workspace_bytes = workspace * geometry.bytes_per_token_layer * workspace_layers
    kv_tokens = memory.decode_kv_tokens or _default_kv_tokens(geometry, context, rooms, workspace_bytes)
    if kv_tokens < context + 1:
        raise ConfigError(f"decode-kv-tokens {kv_tokens} holds less than one context of {context} tokens and a token")
    if memory.prefill_kv_tokens is not None and memory.prefill_kv_tokens < context:
        raise ConfigError(f"prefill-kv-tokens {memory.prefill_kv_tokens} holds less than a context of {context} tokens")
    most_slots = STAGED_CONTEXTS * geometry.blocks_for(context)
    prefill_slots, decode_slots = (min(count, most_slots) for count in slots)
    return Sizes(context, prefill_slots, decode_slots, workspace, kv_tokens, cut)


def _context(
    memory: MemoryConfig, geometry: KvGeometry, model_context_tokens: int
) -> tuple[int, tuple[int, ...], str | None]:
    """(longest context, slots of a prefill and of a decode buffer, what has cut the context if anything has)"""
    wanted, cut = memory.max_context_tokens, None
    if wanted is not None and wanted > model_context_tokens:
        raise ConfigError(f"max-context-tokens {wanted} is beyond the model's limit of {model_context_tokens}")
    context = wanted or min(model_context_tokens, DEFAULT_CONTEXT_TOKENS)
    needed = geometry.blocks_for(context) * geometry.full_block_bytes
    slots = {
        "prefill-staging-bytes": memory.prefill_staging_bytes // geometry.full_block_bytes,
        "decode-staging-bytes": memory.decode_staging_bytes // geometry.full_block_bytes,
    }
    # The answer's tokens never pass through the buffers, but a resumed request's prompt contains them.
    for name, count in slots.items():
        fits = count * geometry.block_tokens
        if wanted is not None and fits < context:
            raise ConfigError(f"{name} holds {fits} tokens, a context of {context} needs {needed} bytes")
        if fits < context:
            context, cut = fits, f"contexts are cut to {fits} tokens by {name}; {needed} bytes would hold the longest"
    if context < 2:
        raise ConfigError(f"staging buffers hold less than one block of {geometry.full_block_bytes} bytes")
    return context, tuple(slots.values()), cut


def _default_kv_tokens(geometry: KvGeometry, context: int, rooms: Collection[DeviceRoom], workspace_bytes: int) -> int:
    """All that GPUs have left; on a CPU no more than a few contexts, as the memory is everybody's."""
    with_decode = [room.decode_bytes(workspace_bytes) for room in rooms if room.num_decode]
    if not with_decode:
        available_tokens = min(DEFAULT_CPU_KV_BYTES // geometry.bytes_per_token, CPU_KV_CONTEXTS * context)
        return max(available_tokens, context + geometry.block_tokens)
    available_tokens = min(with_decode) // geometry.bytes_per_token
    if available_tokens < context + geometry.block_tokens:
        raise ConfigError(
            f"the device has room for the KV of {available_tokens} tokens, a context of {context} does not fit: lower "
            "max-context-tokens, or raise device-memory-fraction"
        )
    return available_tokens
