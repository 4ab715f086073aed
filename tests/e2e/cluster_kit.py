"""A cluster in the test's process, conversations held with it, and transformers' own answers to compare with."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from dualpath.cluster.embedded import EmbeddedCluster
from dualpath.config import ClusterConfig, DeadlineConfig, MemoryConfig, ModelConfig, ServeConfig, StoreConfig
from dualpath.core.ids import RequestId
from dualpath.core.request import Request, RequestRecord, SamplingParams

BLOCK_TOKENS = 16
MIB = 1024 * 1024


def settings(model_dir: Path, store_url: str, **cluster: Any) -> ServeConfig:
    """A small cluster, 1 prefill and 2 decode nodes unless told otherwise."""
    return ServeConfig(
        model=ModelConfig(dir=model_dir, device="cpu"),
        store=StoreConfig(url=store_url, block_tokens=BLOCK_TOKENS),
        cluster=ClusterConfig(**{"prefill": 1, "decode": 2, "path": "split", "threads_per_engine": 1} | cluster),
        memory=MemoryConfig(
            max_context_tokens=2048,
            prefill_staging_bytes=64 * MIB,
            decode_staging_bytes=64 * MIB,
            decode_kv_tokens=16384,
        ),
        deadlines=DeadlineConfig(storage_read_s=10, transfer_s=10, slot_s=30),
    )


@asynccontextmanager
async def cluster(config: ServeConfig) -> AsyncIterator[EmbeddedCluster]:
    embedded = EmbeddedCluster(config, progress=lambda _: None)
    await embedded.start()
    try:
        yield embedded
    finally:
        await embedded.close(10.0)


@dataclass(frozen=True)
class Reply:
    token_ids: list[int]
    record: RequestRecord


async def ask(
    embedded: EmbeddedCluster, prompt: Sequence[int], num_tokens: int, salt: str = "", **sampling: Any
) -> Reply:
    """One request; its record as it was right after the last token."""
    params = SamplingParams(**{"max_tokens": num_tokens, "temperature": 0.0, "ignore_eos": True} | sampling)
    request = Request(RequestId(uuid.uuid4().hex), tuple(prompt), params, salt)
    tokens = [event.token_id async for event in embedded.service.generate(request)]
    record = embedded.service.record(request.request_id)
    assert record is not None
    return Reply(tokens, replace(record))


@dataclass(frozen=True)
class Conversation:
    """What one agent appends in each turn; the first entry is the first prompt."""

    appends: list[list[int]]
    num_tokens: int = 10
    answers: list[list[int]] = field(default_factory=list)  # transformers' own, one per turn

    def prompt(self, turn: int) -> list[int]:
        """Everything before the turn's answer, with transformers' answers in between."""
        tokens: list[int] = []
        for index in range(turn + 1):
            tokens += self.appends[index]
            if index < turn:
                tokens += self.answers[index]
        return tokens


def conversations(model_dir: Path, count: int, num_turns: int = 6, seed: int = 0) -> list[Conversation]:
    """Random conversations with lengths around block boundaries, answered by transformers' ``generate``."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    source = random.Random(seed)
    out = []
    for _ in range(count):
        lengths = [source.randint(20, 90), *(source.randint(1, 40) for _ in range(num_turns - 1))]
        appends = [[source.randrange(32, 127) for _ in range(length)] for length in lengths]
        conversation = Conversation(appends, num_tokens=source.randint(6, 14))
        for turn in range(num_turns):
            ids = torch.tensor([conversation.prompt(turn)])
            with torch.inference_mode():
                output = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=conversation.num_tokens,
                    min_new_tokens=conversation.num_tokens,
                    do_sample=False,
                )
            conversation.answers.append(output[0, ids.shape[1] :].tolist())
        out.append(conversation)
    return out


async def hold(
    embedded: EmbeddedCluster, conversation: Conversation, salt: str, first_turn: int = 0, num_turns: int | None = None
) -> list[RequestRecord]:
    """Hold a conversation (from ``first_turn`` on) and compare every answer, and every hit length, with the truth."""
    records = []
    last = len(conversation.appends) if num_turns is None else first_turn + num_turns
    for turn in range(first_turn, last):
        reply = await ask(embedded, conversation.prompt(turn), conversation.num_tokens, salt)
        assert reply.token_ids == conversation.answers[turn], f"turn {turn}: another answer than transformers'"
        earlier = len(conversation.prompt(turn - 1)) + conversation.num_tokens if turn else 0
        assert reply.record.num_hit_tokens == earlier // BLOCK_TOKENS * BLOCK_TOKENS, f"turn {turn}: hit length"
        records.append(reply.record)
    return records


async def all_zero(embedded: EmbeddedCluster) -> None:
    """Everything that requests held has been given back."""
    async with asyncio.timeout(10.0):
        while not await _is_zero(embedded):  # noqa: ASYNC110  (many parts settle; no one event says so)
            await asyncio.sleep(0.02)
    embedded.desk.engine_loads.check_integrity()


async def _is_zero(embedded: EmbeddedCluster) -> bool:
    stats = await embedded.service.stats()
    held = [e for e in stats.engines if e.num_requests or e.staging_slots_used or e.device_kv_used_bytes]
    return not held and stats.num_running_requests == 0 and stats.num_queued_requests == 0
