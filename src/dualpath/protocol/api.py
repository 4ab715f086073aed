"""What the scheduler may ask of an engine, be it in the same process or on another host.

An engine has two parts. *Staging* is the memory that KV passes through on its way from storage and between engines,
and who may reach it; *compute* is what makes tokens. They may be in two places, so each is a protocol of its own, and
an engine is both. A call that is declared here can cross a link (``protocol.methods``): nothing else names it.

One request's life, as its coordinator in ``scheduler`` drives it (paper section 4, both read paths):

1. ``decode.reserve``   decode-buffer slots for the whole prompt (back-pressure: waits for slots)
2. ``prefill.reserve``  prefill-buffer slots for the blocks read on the prefill side, if there are any
3. ``prefill.read`` and ``decode.read`` concurrently: each side's share through its own storage NIC, verified
4. a block that failed is read on the other side; if that fails too, or it is missing, the hit is cut before it
5. ``prefill.prefill``  layer-streamed forward; prompt KV ends up in the decode buffer; returns the first token
6. ``prefill.release``  again and again until it says True: nothing that was sent for the request moves any more
7. ``decode.decode``    device admission, persistence, tokens; does not wait for 6; ``decode.stop`` ends it early
8. ``decode.release``   after 6 and 7

6 and 8 come always, in this order, whatever happened before; both are idempotent.

A transfer that failed is not at rest: bytes of it may still arrive, on both sides. Its memory is used again after the
prefill engine has removed the peer (its own side is at rest then), the decode engine has (so is the other side), and
the prefill engine was told so by ``peer_at_rest``; or when the process whose memory it was is gone. Engines name each
other by ``PeerId``, one incarnation: an attempt of an engine's former life never meets the memory of the next.

Slots are always taken decode side first, so two requests can never wait for each other. Every awaited call has a
deadline in the engine and raises DualPathError subclasses only; EngineLostError means "resume this request elsewhere".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dualpath.core.ids import BlockKey, EngineId, NodeId, PeerId, RequestId
from dualpath.core.plan import Role
from dualpath.core.request import Request, TokenEvent
from dualpath.core.stats import EngineStats
from dualpath.core.weights import Weights
from dualpath.protocol.methods import holds, releases

NO_ROOT = BlockKey(b"")  # it follows from the engine's own namespace and the request's salt


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
    changes_in_place: bool = False  # its weights: no two fit, and a change may fail when others have changed already


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
    root: BlockKey = NO_ROOT  # the parent of the first
    namespace_digest: bytes = b""  # of the weights that the order is for; none: whatever the engine has


@dataclass(frozen=True, slots=True)
class DecodeOrder:
    """Everything a decode engine needs to go on after prefill."""

    request: Request  # prompt_token_ids as prefilled; already generated tokens included after a resume
    num_hit_tokens: int
    first_token: TokenEvent  # sampled by the prefill engine, already sent to the client
    keys: tuple[BlockKey, ...] = field(default=())  # keys of the prompt's Full Blocks
    root: BlockKey = NO_ROOT  # as in PrefillOrder
    namespace_digest: bytes = b""


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """What an engine step brought a request: new tokens, and keys that became durable or failed since the last."""

    tokens: tuple[TokenEvent, ...] = ()
    admitted: bool = False  # first message after device memory was granted: HANDED_OVER -> DECODING
    writing: tuple[BlockKey, ...] = ()  # writes just started: hits that a next turn may await
    parents: tuple[BlockKey, ...] = ()  # of each in ``writing``, where only the engine knows the tokens
    durable: tuple[BlockKey, ...] = ()
    not_persisted: tuple[BlockKey, ...] = ()
    weight_version: str | None = None  # the engine has other weights: from the next step's tokens on


class EngineStaging(Protocol):
    """The staging buffer of an engine of either role."""

    @property
    def info(self) -> EngineInfo: ...

    async def add_peer(self, peer_metadata: bytes) -> None: ...

    async def remove_peer(self, peer: PeerId) -> None:
        """The peer is lost, or a transfer with it has failed: all with it fail now, not at their deadline.

        On return nothing of them moves in this engine's memory any more, whichever of the two began it, be the peer
        dead or alive. Unknown peers are fine. It may be added again.
        """
        ...

    @holds
    async def read(
        self, request_id: RequestId, blocks: Sequence[tuple[int, BlockKey]], namespace_digest: bytes = b""
    ) -> ReadOutcome:
        """Read blocks (index, key) into the request's slots. A prefill engine reserves more where it has too few.

        They are of the namespace that is named, else of the engine's own.
        Where a decode engine raises, late reads may still write its slots: release them all.
        """
        ...

    async def stats(self) -> EngineStats: ...


class PrefillStaging(EngineStaging, Protocol):
    async def peer_at_rest(self, peer: PeerId) -> None:
        """Nothing that was sent to the removed peer moves there any more: it has removed us, or its process is gone."""
        ...

    @holds
    async def reserve(self, request_id: RequestId, num_slots: int, num_prompt_blocks: int) -> None:
        """Wait, first come first served, until ``num_slots`` prefill-buffer slots are the request's.

        An engine that does not stream layers also sets device memory aside for all ``num_prompt_blocks`` of it.
        """
        ...

    @releases
    async def release(self, request_id: RequestId) -> bool:
        """Drop what the request holds here. False: some transfer may still write remote memory; call again later.

        After a failed transfer that is until ``peer_at_rest``; ``stats().broken_peers`` names the peers.
        """
        ...


class EngineCompute(Protocol):
    """What makes tokens, in an engine of either role."""

    async def pause(self) -> None:
        """No forward runs on return, and none begins before ``resume``; all else goes on. As often as one likes."""
        ...

    async def resume(self) -> None: ...

    async def weights(self) -> tuple[Weights, str]:
        """Those in use, and their fingerprint."""
        ...

    async def load_weights(self, weights: Weights) -> str:
        """Load others beside those in use. Returns their fingerprint. Raises ConfigError where they do not fit."""
        ...

    async def use_weights(self, weights: Weights) -> None:
        """Change to those that were loaded, between two forwards. Idempotent.

        Prompts whose prefill is not complete come to nothing. Requests that are decoded go on with the KV that they
        have; nothing that they write from then on is stored, unless the weights are the same by their fingerprint.
        """
        ...

    async def drop_weights(self, weights: Weights) -> None:
        """They are not to be used after all."""
        ...


class PrefillCompute(EngineCompute, Protocol):
    @holds
    def prefill(self, order: PrefillOrder) -> AsyncIterator[TokenEvent | None]:
        """Yields None when the request enters a forward batch (READY -> PREFILLING), then the first token, then ends.

        When the token is yielded the prompt's KV is complete in the decode buffer.
        """
        ...


class PrefillEngineClient(PrefillStaging, PrefillCompute, Protocol):
    """A whole prefill engine."""


class DecodeStaging(EngineStaging, Protocol):
    @holds
    async def reserve(self, request_id: RequestId, num_slots: int) -> tuple[int, ...]:
        """Wait, first come first served, for decode-buffer slots; slot i will hold block i of the prompt."""
        ...

    @releases
    async def release(self, request_id: RequestId) -> None:
        """Drop what the request holds here. A slot that a read of this engine may still write stays out of use."""
        ...


class DecodeCompute(EngineCompute, Protocol):
    @holds
    def decode(self, order: DecodeOrder) -> AsyncIterator[DecodeStep]:
        """Admit, persist, decode. Ends after a token with a finish reason and after the request's last write ended.

        Raises PreemptedError when others needed the device memory. Closing the iterator cancels.
        """
        ...

    async def stop(self, request_id: RequestId) -> None:
        """No more tokens; ``decode`` ends after the writes that are under way. Unknown requests are fine."""
        ...


class DecodeEngineClient(DecodeStaging, DecodeCompute, Protocol):
    """A whole decode engine."""


NODE = EngineId("")  # whom ``NodeCalls`` are addressed to


class NodeCalls(Protocol):
    """What the scheduler may ask of a node itself."""

    async def end_caller(self, caller: str) -> tuple[tuple[EngineId, RequestId], ...]:
        """End a gateway's session with all its calls, as it is dead or was given up. Returns what its requests hold.

        It may begin another session; what was under way has ended for it, too.
        """
        ...


PROTOCOLS: Mapping[Role, type] = {Role.PREFILL: PrefillEngineClient, Role.DECODE: DecodeEngineClient}
