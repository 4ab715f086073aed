"""A request inside the decode engine: its tokens, its device blocks, what it owes to storage and to its listener."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from dualpath.core.ids import BlockKey, RequestId
from dualpath.core.keys import child_key
from dualpath.core.request import SamplingParams, TokenEvent
from dualpath.engine.output_state import OutputState
from dualpath.engine.phases import DecodePhase, entered
from dualpath.protocol.api import DecodeOrder, DecodeStep
from dualpath.store.header import BlockName


@dataclass(slots=True, eq=False)
class Sequence:
    """Event loop only. ``num_kv`` tokens have KV in ``blocks``; ``tokens[num_kv]`` is computed next."""

    order: DecodeOrder
    tokens: list[int]
    num_kv: int
    parent: BlockKey  # key of the last Full Block, the parent of the next
    slots: dict[int, int]  # decode-buffer slot of each block of the prompt, until they are in device memory
    names: Seq[BlockName] = ()  # of the prompt's blocks, where KV is verified end to end
    steps: asyncio.Queue[DecodeStep | Exception | None] = field(default_factory=asyncio.Queue)
    blocks: list[int] = field(default_factory=list)
    num_generated: int = 1
    output: OutputState | None = None  # where logits are shaped
    num_copies: int = 0  # device blocks being copied out: the blocks must not be freed yet
    num_writes: int = 0  # storage writes under way
    finished: bool = False  # no more tokens for the client
    is_mixed: bool = False  # the weights changed while it was here: what comes now is of no use to others
    phase: DecodePhase = DecodePhase.WAITING
    error: Exception | None = None  # raised to the listener when the last write has ended

    @property
    def request_id(self) -> RequestId:
        return self.order.request.request_id

    @property
    def params(self) -> SamplingParams:
        return self.order.request.sampling

    @property
    def ended(self) -> bool:
        return self.phase is DecodePhase.ENDED

    def enter(self, phase: DecodePhase) -> None:
        self.phase = entered(self.phase, phase)

    def take(self, event: TokenEvent, block_tokens: int) -> tuple[BlockKey, ...]:
        """Append a token that the client will see; returns keys promised with it.

        When the last token completes a block, the block's KV is still owed, as the next turn expects every Full Block.
        """
        self.tokens.append(event.token_id)
        self.num_generated += 1
        self.finished = event.finish_reason is not None
        if self.finished:
            self.output = None  # behind the last token nothing is chosen, though its KV may still be owed
        elif self.output is not None:
            self.output.take(event.token_id)
        return (self.key_of_last_block(block_tokens),) if self.finished and self.owes_last_block(block_tokens) else ()

    def owes_last_block(self, block_tokens: int) -> bool:
        return not self.is_mixed and len(self.tokens) % block_tokens == 0 and self.num_kv == len(self.tokens) - 1

    def key_of_last_block(self, block_tokens: int) -> BlockKey:
        return child_key(self.parent, self.tokens[-block_tokens:])

    def complete_block(self, block_tokens: int) -> tuple[int, BlockKey, BlockKey] | None:
        """(block index, key, parent) if the last KV written completed a Full Block; the chain moves on to it."""
        if self.num_kv % block_tokens:
            return None
        index = self.num_kv // block_tokens - 1
        parent = self.parent
        self.parent = child_key(parent, self.tokens[index * block_tokens : self.num_kv])
        return index, self.parent, parent

    def post(self, step: DecodeStep) -> None:
        self.steps.put_nowait(step)

    def settle(self) -> None:
        """Tell the listener that nothing more will come, once that is so."""
        if self.ended and self.num_writes == 0:
            self.steps.put_nowait(self.error)
