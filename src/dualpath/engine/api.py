"""What the scheduler may ask of an engine, be it in the same process or on another host.

One request's life, as its coordinator in ``scheduler`` drives it (paper section 4, both read paths):

1. ``decode.reserve``   decode-buffer slots for the whole prompt (back-pressure: waits for slots)
2. ``prefill.reserve``  prefill-buffer slots for the blocks read on the prefill side
3. ``prefill.read`` and ``decode.read`` concurrently: each side's share through its own storage NIC, verified
4. a block that failed is read on the other side; if that fails too, or it is missing, the hit is cut before it
5. ``prefill.prefill``  layer-streamed forward; prompt KV ends up in the decode buffer; returns the first token
6. ``decode.decode``    device admission, persistence, tokens
7. ``prefill.release`` then ``decode.release``, always, whatever happened; both are idempotent

A transfer that failed is not at rest: bytes of it may still arrive, on both sides. Its memory is used again after the
prefill engine has removed the peer (its own side is at rest then), the decode engine has (so is the other side), and
the prefill engine was told so by ``peer_at_rest``; or when the process whose memory it was is gone. Engines name each
other by ``PeerId``, one incarnation: an attempt of an engine's former life never meets the memory of the next.

Slots are always taken decode side first, so two requests can never wait for each other. Every awaited call has a
deadline in the engine and raises DualPathError subclasses only; EngineLostError means "resume this request elsewhere".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dualpath.core.ids import BlockKey, EngineId, NodeId, PeerId, RequestId
from dualpath.core.plan import Role
from dualpath.core.request import Request, TokenEvent
from dualpath.core.stats import EngineStats


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Fixed facts of an engine, known when it is ready."""

    engine_id: EngineId
    peer_id: PeerId  # this incarnation of it
    node_id: NodeId
    role: Role
    max_prompt_tokens: int  # most prompt tokens its buffers can ever hold
    device_kv_tokens: int  # capacity of its device KV pool (decode) or of one layer's workspace (prefill)
    peer_metadata: bytes  # for the other side's traffic manager
    verifies: bool = False  # KV end to end: both sides do, or neither


@dataclass(frozen=True, slots=True)
class ReadOutcome:
    """Which of the asked blocks are now in the engine's buffer, verified. Indexes count blocks of the prompt."""

    ok: frozenset[int] = frozenset()
    gone: frozenset[int] = frozenset()  # missing or corrupt on storage: no other side can help
    failed: frozenset[int] = frozenset()  # transfer failed or timed out: the other side may succeed
    num_bytes: int = 0  # read from storage
    moved_slots: tuple[
        tuple[int, int], ...
    ] = ()  # decode side: (block, its new slot), because a late read may still write the old one


@dataclass(frozen=True, slots=True)
class PrefillOrder:
    """Everything a prefill engine needs beyond the blocks that it has read itself."""

    request: Request
    num_hit_tokens: int  # a multiple of block_tokens; all these blocks are verified on one of the two sides
    prefill_blocks: frozenset[int]  # hit blocks in the prefill buffer; the other hit blocks are in the decode buffer
    decode_peer: PeerId  # the incarnation that gave the slots
    decode_slots: tuple[int, ...]  # the decode buffer's slot of every block of the prompt
    keys: tuple[BlockKey, ...]  # of the prompt's Full Blocks: whose bytes a slot holds is checked against them


@dataclass(frozen=True, slots=True)
class DecodeOrder:
    """Everything a decode engine needs to go on after prefill."""

    request: Request  # prompt_token_ids as prefilled; already generated tokens included after a resume
    num_hit_tokens: int
    first_token: TokenEvent  # sampled by the prefill engine, already sent to the client
    keys: tuple[BlockKey, ...] = field(default=())  # keys of the prompt's Full Blocks


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """What an engine step brought a request: new tokens, and keys that became durable or failed since the last."""

    tokens: tuple[TokenEvent, ...] = ()
    admitted: bool = False  # first message after device memory was granted: HANDED_OVER -> DECODING
    writing: tuple[BlockKey, ...] = ()  # writes just started: hits that a next turn may await
    durable: tuple[BlockKey, ...] = ()
    not_persisted: tuple[BlockKey, ...] = ()


class PrefillEngineClient(Protocol):
    @property
    def info(self) -> EngineInfo: ...

    async def add_peer(self, peer_metadata: bytes) -> None: ...

    async def remove_peer(self, peer: PeerId) -> None:
        """The peer is lost, or a transfer with it has failed: all with it fail now, not at their deadline.

        On return nothing of them moves in this engine's memory any more. Unknown peers are fine. May be added again.
        """
        ...

    async def peer_at_rest(self, peer: PeerId) -> None:
        """Nothing that was sent to the removed peer moves there any more: it has removed us, or its process is gone."""
        ...

    async def reserve(self, request_id: RequestId, num_slots: int, num_prompt_blocks: int) -> None:
        """Wait, first come first served, until ``num_slots`` prefill-buffer slots are the request's.

        An engine that does not stream layers also sets device memory aside for all ``num_prompt_blocks`` of it.
        """
        ...

    async def read(self, request_id: RequestId, blocks: Sequence[tuple[int, BlockKey]]) -> ReadOutcome:
        """Read blocks (index, key) into the request's slots; reserves more slots itself when it has too few."""
        ...

    def prefill(self, order: PrefillOrder) -> AsyncIterator[TokenEvent | None]:
        """Yields None when the request enters a forward batch (READY -> PREFILLING), then the first token, then ends.

        When the token is yielded the prompt's KV is complete in the decode buffer.
        """
        ...

    async def release(self, request_id: RequestId) -> bool:
        """Drop what the request holds here. False: some transfer may still write remote memory; call again later.

        After a failed transfer that is until ``peer_at_rest``; ``stats().broken_peers`` names the peers.
        """
        ...

    async def stats(self) -> EngineStats: ...


class DecodeEngineClient(Protocol):
    @property
    def info(self) -> EngineInfo: ...

    async def add_peer(self, peer_metadata: bytes) -> None: ...

    async def remove_peer(self, peer: PeerId) -> None:
        """On return nothing that this prefill engine began moves in our memory any more, be it dead or alive.

        Unknown peers are fine. It may be added again.
        """
        ...

    async def reserve(self, request_id: RequestId, num_slots: int) -> tuple[int, ...]:
        """Wait, first come first served, for decode-buffer slots; slot i will hold block i of the prompt."""
        ...

    async def read(self, request_id: RequestId, blocks: Sequence[tuple[int, BlockKey]]) -> ReadOutcome:
        """Read blocks into their slots. Where it raises, late reads may still write them: release them all."""
        ...

    def decode(self, order: DecodeOrder) -> AsyncIterator[DecodeStep]:
        """Admit, persist, decode. Ends after a token with a finish reason and after the request's last write ended.

        Raises PreemptedError when others needed the device memory. Closing the iterator cancels.
        """
        ...

    async def stop(self, request_id: RequestId) -> None:
        """No more tokens; ``decode`` ends after the writes that are under way. Unknown requests are fine."""
        ...

    async def release(self, request_id: RequestId) -> None: ...

    async def stats(self) -> EngineStats: ...
