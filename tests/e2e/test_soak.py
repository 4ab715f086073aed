"""All at once, in too little memory: agents that leave, storage and links that fail, hang, lie and write late."""

from __future__ import annotations

import asyncio
import ctypes
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dualpath.cluster.embedded import EmbeddedCluster
from dualpath.config import DeadlineConfig, MemoryConfig, SchedulerConfig
from dualpath.core.ids import RequestId
from dualpath.core.request import Request, SamplingParams
from dualpath.engine.sampling import SampleJob, sample
from dualpath.models.init import init_model
from dualpath.models.load import load_model
from dualpath.store.contract import IoTicket, StoreIo
from dualpath.store.files.store import FileStore
from dualpath.store.header import HEADER_BYTES, object_bytes
from dualpath.store.memory import MemoryStore
from dualpath.testing.faulty_store import FaultyIo, FaultyTicket
from dualpath.traffic import nixl_transport
from dualpath.traffic.fake_transport import FakeFabric
from tests.e2e.cluster_kit import BLOCK_TOKENS, all_zero, cluster, settings

CONTEXT = 20 * BLOCK_TOKENS
NUM_AGENTS, NUM_REQUESTS = 12, 5


class LateIo(FaultyIo):
    """A read that hung when it was given up fills its memory with nonsense just before it comes to rest."""

    def __init__(self, inner: StoreIo) -> None:
        super().__init__(inner)
        self._late: set[IoTicket] = set()

    def release(self, ticket: IoTicket) -> bool:
        assert isinstance(ticket, FaultyTicket)
        is_quiet = super().release(ticket)
        if not is_quiet and ticket.plan is self.reads:
            self._late.add(ticket)
        elif ticket in self._late:
            self._late.remove(ticket)
            ctypes.memset(ticket.request.address + HEADER_BYTES, 0x3C, ticket.request.num_bytes - HEADER_BYTES)
        return is_quiet


@dataclass
class Faults:
    """What can be made to go wrong. Every fault ends by itself soon."""

    ios: list[LateIo] = field(default_factory=list)
    fabric: FakeFabric | None = None  # None: real transfers, which obey nobody
    directory: Path | None = None  # None: blocks in memory

    def cause_one(self, embedded: EmbeddedCluster, source: random.Random) -> None:
        later, for_s = asyncio.get_running_loop().call_later, source.uniform(0.02, 0.5)
        io = source.choice(self.ios)
        engine = source.choice([*embedded.prefill_engines, *embedded.decode_engines]).info.engine_id
        match source.randrange(7):
            case 0 | 1:
                source.choice([io.hang_reads, io.hang_writes])()
                later(for_s, io.unhang)
            case 2:
                set_fault = source.choice([io.fail_reads, io.fail_writes, io.corrupt_reads])
                set_fault()
                later(for_s / 2, set_fault, ())
            case 3 | 4 if self.fabric is not None:
                self.fabric.hang(engine)
                later(for_s, self.fabric.unhang, engine)
            case 5 if self.fabric is not None:
                self.fabric.fail(engine)
                later(for_s / 4, self.fabric.fail, engine, False)
            case 6:
                embedded.desk.mark_lost(engine)
            case _:
                self._damage_files(source)

    def _damage_files(self, source: random.Random) -> None:
        files = sorted(self.directory.rglob("*.kv")) if self.directory is not None else []
        for file in source.sample(files, min(4, len(files))):
            data = bytearray(file.read_bytes())
            file.unlink()
            if source.random() < 0.5:
                data[source.randrange(len(data))] ^= 1
                file.write_bytes(data)


@dataclass(frozen=True)
class Plain:
    """The model as transformers runs it, one request at a time; tokens are chosen as ours are."""

    model: Any

    def answer(self, prompt: Sequence[int], params: SamplingParams) -> list[int]:
        tokens: list[int] = []
        ids, past = torch.tensor([prompt]), None
        with torch.inference_mode():
            while len(tokens) < params.max_tokens and not set(tokens) & set(params.stop_token_ids):
                output = self.model(input_ids=ids, past_key_values=past, use_cache=True)
                past = output.past_key_values
                (event,) = sample(output.logits[:, -1].clone(), [SampleJob(params, len(prompt) + len(tokens))])
                tokens.append(event.token_id)
                ids = torch.tensor([[event.token_id]])
        return tokens


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model("llama", tmp_path_factory.mktemp("soak") / "model", layers=3)


@pytest.fixture(params=["memory-fake", "files-nixl"])
def faults(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Faults:
    """Engines that are built from now on read and write through a ``LateIo``."""
    faults = Faults()
    store: Any = MemoryStore if request.param == "memory-fake" else FileStore
    open_io = store.open_io

    def open_faulty(self: Any, agent: Any, runtime: Any) -> LateIo:
        faults.ios.append(LateIo(open_io(self, agent, runtime)))
        return faults.ios[-1]

    monkeypatch.setattr(store, "open_io", open_faulty)
    if store is MemoryStore:
        fabric = faults.fabric = FakeFabric(delay_s=0.0005)
        monkeypatch.setattr(nixl_transport, "NixlTransport", lambda peer_id, **_: fabric.transport(peer_id))
    else:
        faults.directory = tmp_path
    return faults


async def ask(
    embedded: EmbeddedCluster, prompt: Sequence[int], params: SamplingParams, source: random.Random
) -> tuple[list[int], bool]:
    """(tokens, are they all?): some clients leave after a while, some after a token."""
    request = Request(RequestId(uuid.uuid4().hex), tuple(prompt), params)
    stream, tokens = embedded.service.generate(request), list[int]()
    last = source.choice([1, 1, source.randint(1, params.max_tokens)] + [params.max_tokens] * 6)
    patience_s = source.choice([0.3 * source.random() ** 2] + [60.0] * 5)

    async def listen() -> None:
        async for event in stream:
            tokens.append(event.token_id)
            if len(tokens) == last:
                return

    try:
        async with asyncio.timeout(patience_s):
            await listen()
    except TimeoutError:
        assert patience_s < 60.0, embedded.service.record(request.request_id)
        last = -1  # the last token may have come in the moment in which the client left
    finally:
        await stream.aclose()
    record = embedded.service.record(request.request_id)
    assert record is not None
    return tokens, record.outcome == "finished" and last >= 0


async def converse(embedded: EmbeddedCluster, plain: Plain, faults: Faults, source: random.Random) -> None:
    """Agents share openings, so that they read, write and evict the same blocks."""
    prompt: list[int] = []
    for _ in range(NUM_REQUESTS):
        first = source.choice([0, 40]) + len(prompt)
        prompt += [32 + (first + i) % 90 for i in range(source.choice([1, 15, 16, 17, 60, 130]))]
        if len(prompt) > CONTEXT - 2 * BLOCK_TOKENS:
            prompt = prompt[: source.choice([1, BLOCK_TOKENS, 5 * BLOCK_TOKENS + 1])]
        params = SamplingParams(
            max_tokens=min(source.choice([1, 2, 15, 16, 17, 60, 100]), CONTEXT - 1 - len(prompt)),
            temperature=source.choice([0.0, 1.0]),
            seed=source.randrange(3),
            stop_token_ids=tuple(source.sample(range(200), 4)),
            ignore_eos=True,
        )
        if source.random() < 0.6:
            faults.cause_one(embedded, source)
        truth = await asyncio.to_thread(plain.answer, prompt, params)
        answer, is_whole = await ask(embedded, prompt, params, source)
        assert answer == (truth if is_whole else truth[: len(answer)])
        prompt += answer


async def test_every_token_is_the_plain_models_and_nothing_is_left(faults, model_dir, tmp_path):
    geometry = load_model(model_dir).spec.geometry(BLOCK_TOKENS)
    block_bytes = geometry.full_block_bytes
    url = "memory://soak" if faults.directory is None else f"file://{tmp_path}"
    base = settings(model_dir, url, prefill=2, decode=2, engines_per_node=2, path="round_robin")
    config = replace(
        base,
        memory=MemoryConfig(
            max_context_tokens=CONTEXT,
            prefill_staging_bytes=24 * block_bytes,
            decode_staging_bytes=30 * block_bytes,
            decode_kv_tokens=CONTEXT + 3 * BLOCK_TOKENS,
            prefill_batch_tokens=100,
        ),
        store=replace(base.store, capacity_bytes=150 * object_bytes(geometry)),
        deadlines=DeadlineConfig(storage_read_s=0.2, transfer_s=0.3, slot_s=1.0),
        scheduler=SchedulerConfig(max_retries=50),
    )
    plain = Plain(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32))
    async with cluster(config) as embedded:
        talks = [converse(embedded, plain, faults, random.Random(i)) for i in range(NUM_AGENTS)]
        await asyncio.gather(*talks)
        records = embedded.service.recent(NUM_AGENTS * NUM_REQUESTS)
        assert len(records) == NUM_AGENTS * NUM_REQUESTS
        assert {record.outcome for record in records} <= {"finished", "cancelled"}
        assert any(record.num_hit_tokens for record in records)
        await all_zero(embedded)
        for engine in (*embedded.prefill_engines, *embedded.decode_engines):
            engine._traffic.slots.check_integrity()
            engine._traffic.write_slots.check_integrity()
        for decode in embedded.decode_engines:
            decode._pool.check_integrity()
