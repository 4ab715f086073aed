"""Output items of the Responses API, begun and complete, made of an answer's blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dualpath.core.request import TokenEvent
from dualpath.gateway.openai.logprobs import LogprobWriter
from dualpath.gateway.responses.reasoning import seal
from dualpath.gateway.responses.tools import Tools
from dualpath.gateway.text.blocks import Block, Kind

_PREFIXES = {Kind.CONTENT: "msg", Kind.REASONING: "rs", Kind.CALL: "fc"}


class OutputItems:
    def __init__(
        self,
        job_id: str,
        tools: Tools,
        *,
        seals: bool = False,
        logprobs: LogprobWriter | None = None,
        keep: Callable[[list[dict[str, Any]]], None] = lambda _: None,
    ) -> None:
        """``seals``: reasoning comes with what a client can carry to the next turn. ``keep`` takes all items, in the
        end."""
        self._job_id = job_id.partition("-")[2]
        self._places = tools.places
        self._seals = seals
        self._logprobs = logprobs
        self._keep = keep

    def items(self, blocks: Sequence[Block], *, is_cut: bool) -> list[dict[str, Any]]:
        """All of an answer's; ``is_cut``: of the last one."""
        made = [self.item(block, is_cut and block is blocks[-1]) for block in blocks]
        self._keep(made)
        return made

    def item_id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self._job_id}{block.index:02x}"

    def begun(self, block: Block) -> dict[str, Any]:
        """An item of which nothing has been said yet."""
        if block.kind is Kind.REASONING:
            item: dict[str, Any] = {"type": "reasoning", "summary": [], "content": [], "encrypted_content": None}
        elif block.kind is Kind.CONTENT:
            item = {"type": "message", "role": "assistant", "content": []}
        else:
            namespace, name = self._places.get(block.name, (None, block.name))
            item = {"type": "function_call", "call_id": block.call_id, "name": name, "arguments": ""}
            if namespace is not None:
                item["namespace"] = namespace
        return {"id": self.item_id(block), **item, "status": "in_progress"}

    def item(self, block: Block, is_cut: bool) -> dict[str, Any]:
        """All of it, which may have been cut off."""
        item = self.begun(block) | {"status": "incomplete" if is_cut else "completed"}
        if block.kind is Kind.CALL:
            return item | {"arguments": block.text}
        if block.kind is Kind.REASONING and self._seals:
            item["encrypted_content"] = seal(block.text)
        return item | {"content": [self.part(block, whole=True)]}

    def part(self, block: Block, *, whole: bool) -> dict[str, Any]:
        text = block.text if whole else ""
        if block.kind is Kind.REASONING:
            return {"type": "reasoning_text", "text": text}
        logprobs = self.logprobs(block.tokens) if whole else []
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def logprobs(self, tokens: Sequence[TokenEvent]) -> list[Any]:
        return [] if self._logprobs is None else list(self._logprobs.chat(tokens).content)
