"""Nodes behind links: the same tokens as in one process, also when a link is cut, falls silent or comes back."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from dualpath.cluster.remote import RemoteCluster
from dualpath.core.ids import EngineId, RequestId
from dualpath.core.request import Request, SamplingParams
from dualpath.models.init import init_model
from tests.e2e.cluster_kit import BLOCK_TOKENS, Conversation, all_zero, ask, cluster, conversations, hold, settings
from tests.e2e.remote_kit import HEARTBEAT_S, node_settings, remote_cluster, until

PROMPT = [32 + (i * 11 + i * i // 3) % 90 for i in range(10 * BLOCK_TOKENS + 5)]
NUM_TOKENS = 300


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model("llama", tmp_path_factory.mktemp("remote") / "model", layers=2)


@pytest.fixture(scope="module")
def talks(model_dir: Path) -> list[Conversation]:
    return conversations(model_dir, 4, 3)


@pytest.fixture(scope="module")
def answer(model_dir: Path) -> list[int]:
    """What one process answers to PROMPT."""

    async def run() -> list[int]:
        async with cluster(settings(model_dir, "memory://truth", decode=1)) as embedded:
            return (await ask(embedded, PROMPT, NUM_TOKENS)).token_ids

    return asyncio.run(run())


async def test_turns_equal_transformers_and_hit(model_dir, talks, tmp_path):
    async with remote_cluster(node_settings(model_dir, f"file://{tmp_path}")) as (remote, _):
        await hold(remote, talks[0], "alone")
        await asyncio.gather(*(hold(remote, talk, "together") for talk in talks))
        await all_zero(remote)
        stats = await remote.service.stats()
        assert [node.node_id for node in stats.nodes] == ["pe0", "de0", "de1"]
        assert all(node.is_up for node in stats.nodes)


async def test_a_decode_step_is_one_message_whatever_its_batch(model_dir, tmp_path):
    async with remote_cluster(node_settings(model_dir, f"file://{tmp_path}", decode=1)) as (remote, _):
        await ask(remote, PROMPT, 1)
        link = remote.links["de0"]
        before, forwards = link.num_batches, await num_forwards(remote, "de0")
        replies = await asyncio.gather(*(ask(remote, [*PROMPT, 40 + i], 60) for i in range(8)))
        num_tokens = sum(len(reply.token_ids) for reply in replies)
        num_steps = await num_forwards(remote, "de0") - forwards
        num_messages = link.num_batches - before
        assert num_steps < num_tokens / 2, "the requests were hardly decoded together"
        # Reservations, admissions and writes have their own moments; none is a message for each token.
        assert num_messages < num_steps + 8 * 12


async def num_forwards(remote: RemoteCluster, engine_id: str) -> int:
    stats = await remote.service.stats()
    return next(e.num_forwards for e in stats.engines if e.engine_id == engine_id)


class Stream:
    """One request, read in pieces."""

    def __init__(self, remote: RemoteCluster, prompt: list[int], num_tokens: int) -> None:
        params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        self.request = Request(RequestId("stream"), tuple(prompt), params)
        self.remote = remote
        self.events = remote.service.generate(self.request)
        self.tokens: list[int] = []

    async def read(self, count: int | None = None) -> None:
        async for event in self.events:
            self.tokens.append(event.token_id)
            if count is not None and len(self.tokens) >= count:
                return

    @property
    def decode_engine(self) -> str:
        record = self.remote.service.record(self.request.request_id)
        assert record is not None
        assert record.decode_engine is not None
        return record.decode_engine

    @property
    def num_retries(self) -> int:
        record = self.remote.service.record(self.request.request_id)
        assert record is not None
        return record.num_retries


def is_back(remote: RemoteCluster, engine_id: str) -> bool:
    return remote.desk.peering.num_connected(EngineId(engine_id)) > 0


async def both_serve(remote: RemoteCluster) -> None:
    """All engines have work again, and nothing is held afterwards."""
    before = {e.engine_id: e.num_forwards for e in (await remote.service.stats()).engines}
    await asyncio.gather(*(ask(remote, [*PROMPT, 60 + i], 20) for i in range(6)))
    await all_zero(remote)
    after = {e.engine_id: e.num_forwards for e in (await remote.service.stats()).engines}
    assert all(after[engine_id] > before.get(engine_id, 0) for engine_id in after), (before, after)


async def test_a_silent_link_is_noticed_and_its_work_redone_elsewhere(model_dir, answer, tmp_path):
    async with remote_cluster(node_settings(model_dir, f"file://{tmp_path}")) as (remote, channels):
        stream = Stream(remote, PROMPT, NUM_TOKENS)
        await stream.read(60)
        lost = stream.decode_engine
        channels[lost].freeze()
        await stream.read()
        assert stream.tokens == answer, "a gap, a repeat or another token"
        assert stream.num_retries == 1
        assert stream.decode_engine != lost
        assert not is_back(remote, lost)
        channels[lost].thaw()
        await until(lambda: is_back(remote, lost))
        await both_serve(remote)


async def test_a_dead_process_is_replaced_and_its_request_resumed_on_the_new_one(model_dir, answer, tmp_path):
    """The only decode node: the request waits for it to come back."""
    async with remote_cluster(node_settings(model_dir, f"file://{tmp_path}", decode=1)) as (remote, channels):
        stream = Stream(remote, PROMPT, NUM_TOKENS)
        await stream.read(60)
        await channels["de0"].die()
        await until(lambda: not is_back(remote, "de0"))
        assert not remote.service.ready()
        channels["de0"].restart()
        await stream.read()
        assert stream.tokens == answer
        assert remote.service.ready()
        await both_serve(remote)


async def test_slots_that_a_silent_prefill_engine_could_write_stay_out_of_use(model_dir, answer, tmp_path):
    """Its transfers go on while nobody hears of it: the decode side keeps the slots until it has answered."""
    config = node_settings(model_dir, f"file://{tmp_path}", prefill=2, decode=1)
    async with remote_cluster(config) as (remote, channels):
        long_prompt = [32 + (i * 7) % 90 for i in range(80 * BLOCK_TOKENS)]
        asking = asyncio.create_task(ask(remote, long_prompt, 8))
        lost = await prefilling_engine(remote)
        channels[lost].freeze()
        reply = await asking
        assert reply.record.num_retries >= 1
        assert reply.record.prefill_engine != lost
        held = await slots_used(remote, "de0")
        assert held >= 80, "the decode buffer's slots were given away"
        channels[lost].thaw()
        await until(lambda: is_back(remote, lost))
        await all_zero(remote)
        again = await ask(remote, long_prompt, 8, salt="truth")
        assert again.token_ids == reply.token_ids


async def prefilling_engine(remote: RemoteCluster) -> str:
    """The prefill engine of the only request, once its decode side has its slots."""
    while True:
        for record in remote.service.recent(1):
            if record.prefill_engine is not None and "prefilling" in record.phases_s:
                return record.prefill_engine
        await asyncio.sleep(0.001)


async def slots_used(remote: RemoteCluster, engine_id: str) -> int:
    stats = await remote.service.stats()
    return next(e.staging_slots_used for e in stats.engines if e.engine_id == engine_id)


async def test_a_new_scheduler_finds_nothing_held_by_the_former_ones_requests(model_dir, talks, tmp_path):
    config = node_settings(model_dir, f"file://{tmp_path}", decode=1)
    async with remote_cluster(config) as (former, channels):
        stream = Stream(former, PROMPT, NUM_TOKENS)
        await stream.read(30)
        for link in former.links.values():  # as if its process had been killed
            await link.close()
        second = RemoteCluster(config, {link: channels[str(link)] for link in former.links}, progress=lambda _: None)
        await second.start()
        await all_zero(second)
        await hold(second, talks[0], "")
        await second.close(5.0)
        await stream.events.aclose()


async def test_a_node_that_stays_silent_has_its_process_ended_once(model_dir, tmp_path):
    config = node_settings(model_dir, f"file://{tmp_path}", decode=1)
    config = dataclasses.replace(config, ray=dataclasses.replace(config.ray, kill_silent_s=HEARTBEAT_S + 1))
    async with remote_cluster(config) as (_, channels):
        channels["de0"].freeze()
        await until(lambda: channels["de0"].num_killed == 1)
        await asyncio.sleep(2.5)
        assert channels["de0"].num_killed == 1
