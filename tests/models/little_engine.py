"""The smallest engine that serves a model: KV moves through Full Blocks, layer by layer, as in the real one.

It keeps conversations' Full Blocks in a dict (its "storage"), streams them into two workspaces during prefill, collects
the released layers, copies them into a paged pool and decodes all conversations in one batch. Memory that nobody has
written yet is filled with NaN patterns, and every rule of ``LayerStream`` is asserted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dualpath.models.seam import DecodeBatch, Model, PrefillItem

GARBAGE = 0xFF  # all ones is a NaN in every floating-point dtype


@dataclass
class Conversation:
    tokens: list[int] = field(default_factory=list)
    blocks: list[torch.Tensor] = field(default_factory=list)  # stored Full Blocks, uint8 [layers, block_tokens, row]


class RecordingStream:
    """A LayerStream over two workspaces: copies Layer Blocks in on acquire, copies the whole layer out on release."""

    def __init__(
        self, model: Model, items: Sequence[PrefillItem], histories: Sequence[torch.Tensor], num_rows: int
    ) -> None:
        spec = model.spec
        shape = (num_rows, spec.bytes_per_token_layer)
        self._workspaces = [torch.full(shape, GARBAGE, dtype=torch.uint8, device=model.device) for _ in range(2)]
        self._items = items
        self._histories = histories  # per item: uint8 [layers, num_cached, row_bytes]
        self.layers = torch.empty((spec.num_layers, *shape), dtype=torch.uint8, device=model.device)
        self.acquired: list[int] = []
        self.released: list[int] = []

    def acquire(self, layer: int) -> torch.Tensor:
        assert layer == len(self.acquired), "layers are acquired once and in order"
        self.acquired.append(layer)
        assert len(self.acquired) - len(self.released) <= 2, "at most two layers are outstanding"
        workspace = self._workspaces[layer % 2].fill_(GARBAGE)
        for item, history in zip(self._items, self._histories, strict=True):
            workspace[item.row_start : item.row_start + item.num_cached] = history[layer]
        return workspace

    def release(self, layer: int) -> None:
        assert layer == len(self.released), "layers are released once and in order"
        self.released.append(layer)
        self.layers[layer] = self._workspaces[layer % 2]


class LittleEngine:
    """Serves a few conversations with one model. ``max_hit_tokens`` caps reuse, to compare with less of it."""

    def __init__(self, model: Model, block_tokens: int = 64, seed: int = 0) -> None:
        self.model = model
        self.geometry = model.spec.geometry(block_tokens)
        self._random = random.Random(seed)

    def turn(
        self, conversations: Sequence[Conversation], new_tokens: Sequence[Sequence[int]], num_generated: int
    ) -> list[list[int]]:
        """Append ``new_tokens`` to each conversation, generate, store new Full Blocks; return what was generated."""
        for conversation, new in zip(conversations, new_tokens, strict=True):
            conversation.tokens.extend(new)
        per_forward = self.model.spec.max_requests_per_forward or len(conversations)
        rows: list[torch.Tensor] = []
        first: list[int] = []
        for start in range(0, len(conversations), per_forward):
            group = conversations[start : start + per_forward]
            logits, group_rows = self.prefill(group)
            rows.extend(group_rows)
            first.extend(logits.argmax(-1).tolist())
        return self._decode(conversations, rows, first, num_generated)

    def prefill(
        self,
        group: Sequence[Conversation],
        histories: Sequence[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits ``[n, vocab]`` and each conversation's KV ``uint8 [layers, tokens, row_bytes]`` (history and new).

        ``histories`` (same shape, fewer tokens) replaces the stored blocks, e.g. for chunked prefill.
        """
        if histories is None:
            histories = [self.history(conversation) for conversation in group]
        items, row_start = [], 0
        for conversation, history in zip(group, histories, strict=True):
            cached = history.shape[1]
            items.append(PrefillItem(conversation.tokens[cached:], cached, row_start))
            row_start += self.geometry.blocks_for(len(conversation.tokens)) * self.geometry.block_tokens
        stream = RecordingStream(self.model, items, histories, row_start)
        logits = self.model.prefill(items, stream)
        assert len(stream.released) == self.geometry.num_layers
        rows = [
            stream.layers[:, item.row_start : item.row_start + item.num_cached + len(item.token_ids)] for item in items
        ]
        return logits, rows

    def history(self, conversation: Conversation) -> torch.Tensor:
        """Stored KV that a prefill of the tokens can use: whole blocks, and one token left to compute."""
        hits = min(len(conversation.blocks), (len(conversation.tokens) - 1) // self.geometry.block_tokens)
        if hits == 0:
            empty = (self.geometry.num_layers, 0, self.geometry.bytes_per_token_layer)
            return torch.empty(empty, dtype=torch.uint8, device=self.model.device)
        return torch.cat(conversation.blocks[:hits], dim=1)

    def fill_pool(self, rows: Sequence[torch.Tensor], room_tokens: int) -> tuple[torch.Tensor, list[list[int]]]:
        """A pool with each request's KV and room for more, and each request's blocks: runs, holes and shuffles."""
        geometry = self.geometry
        counts = [geometry.blocks_for(row.shape[1] + room_tokens) for row in rows]
        free = list(range(sum(counts) + 3))
        middle = free[len(free) // 2 :]
        self._random.shuffle(middle)
        free = free[: len(free) // 2] + middle
        shape = (len(free), geometry.num_layers, geometry.block_tokens, geometry.bytes_per_token_layer)
        pool = torch.full(shape, GARBAGE, dtype=torch.uint8, device=self.model.device)
        block_lists = []
        for row, count in zip(rows, counts, strict=True):
            blocks, free = free[:count], free[count:]
            block_lists.append(blocks)
            for i, block in enumerate(blocks):
                part = row[:, i * geometry.block_tokens : (i + 1) * geometry.block_tokens]
                pool[block, :, : part.shape[1]] = part
        return pool, block_lists

    def batch(
        self, token_ids: Sequence[int], positions: Sequence[int], block_lists: Sequence[Sequence[int]]
    ) -> DecodeBatch:
        device = self.model.device
        width = max(len(blocks) for blocks in block_lists)
        table = [[*blocks, *[0] * (width - len(blocks))] for blocks in block_lists]
        return DecodeBatch(
            torch.tensor(token_ids, dtype=torch.int64, device=device),
            torch.tensor(positions, dtype=torch.int64, device=device),
            torch.tensor(table, dtype=torch.int32, device=device),
            block_lists,
            list(positions),
        )

    def _decode(
        self,
        conversations: Sequence[Conversation],
        rows: Sequence[torch.Tensor],
        first: list[int],
        num_generated: int,
    ) -> list[list[int]]:
        pool, block_lists = self.fill_pool(rows, num_generated)
        generated = [[token] for token in first]
        for _ in range(num_generated - 1):
            positions = [len(c.tokens) + len(g) - 1 for c, g in zip(conversations, generated, strict=True)]
            batch = self.batch([g[-1] for g in generated], positions, block_lists)
            for tokens, token in zip(generated, self.model.decode(batch, pool).argmax(-1).tolist(), strict=True):
                tokens.append(token)
        for conversation, tokens, blocks in zip(conversations, generated, block_lists, strict=True):
            conversation.tokens.extend(tokens)
            full = self.geometry.full_blocks_in(len(conversation.tokens) - 1)  # the last token's KV does not exist yet
            conversation.blocks = [pool[block].clone() for block in blocks[:full]]
        return generated
