"""Weights change while requests run, on real models and transfers: every token is transformers' own by its weights."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dualpath.cluster.embedded import EmbeddedCluster
from dualpath.core.errors import WeightsError
from dualpath.core.ids import RequestId
from dualpath.core.pause import PauseMode
from dualpath.core.request import Request, SamplingParams, WeightSpan
from dualpath.models.noise import add_noise
from dualpath.store.gc import collect
from dualpath.store.inspect import summarize
from dualpath.store.weights_note import WeightsNote
from tests.e2e.cluster_kit import BLOCK_TOKENS, all_zero, ask, cluster, conversations, hold, settings

PROMPT = [(7 * i) % 90 + 32 for i in range(3 * BLOCK_TOKENS + 5)]


@pytest.fixture(scope="module")
def dirs(tiny_model_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and the same with other weights."""
    first = tiny_model_dir("llama")
    return first, add_noise(first, tmp_path_factory.mktemp("weights") / "step-1", scale=0.5)


class _Running:
    """A request that is read in a task of its own."""

    def __init__(self, embedded: EmbeddedCluster, num_tokens: int) -> None:
        params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        self.request = Request(RequestId(uuid.uuid4().hex), tuple(PROMPT), params)
        self.tokens: list[int] = []
        self.changed = asyncio.Event()
        self.task = asyncio.create_task(self._read(embedded))

    async def _read(self, embedded: EmbeddedCluster) -> None:
        async for event in embedded.service.generate(self.request):
            self.tokens.append(event.token_id)
            self.changed.set()

    async def until(self, num_tokens: int) -> None:
        while len(self.tokens) < num_tokens:
            self.changed.clear()
            await self.changed.wait()


async def test_new_weights_find_nothing_of_the_old_and_a_step_back_finds_all(
    dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = dirs
    (old,), (new,) = (conversations(directory, 1, num_turns=3) for directory in dirs)
    async with cluster(settings(first, f"file://{tmp_path}/kv")) as embedded:
        await hold(embedded, old, "")
        assert await embedded.service.control.update_weights(str(second), "step-1") == "step-1"
        records = await hold(embedded, new, "")  # which compares tokens and hit lengths: the first turn has none
        assert records[0].num_hit_tokens == 0
        assert records[0].weight_versions == [WeightSpan("step-1", 0, new.num_tokens)]
        again = await embedded.service.control.update_weights(str(first))
        reply = await ask(embedded, old.prompt(2), old.num_tokens)
        assert reply.token_ids == old.answers[2]
        known = len(old.prompt(2)) - 1
        assert reply.record.num_hit_tokens == known // BLOCK_TOKENS * BLOCK_TOKENS
        assert reply.record.weight_versions == [WeightSpan(again, 0, old.num_tokens)]
        await all_zero(embedded)


async def test_gc_leaves_what_the_server_uses_and_the_server_what_gc_took(
    dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = dirs
    url = f"file://{tmp_path}/kv"
    (old,), (new,) = (conversations(directory, 1, num_turns=3) for directory in dirs)
    async with cluster(settings(first, url)) as embedded:
        await hold(embedded, old, "")
        await embedded.service.control.update_weights(str(second), "step-1")
        await hold(embedded, new, "", num_turns=2)
        async with asyncio.timeout(10):
            while not any(note and note.version == "step-1" for note in _notes(url)):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        done = await asyncio.to_thread(collect, url, keep_latest=0)
        assert done.num_deleted == 0, "the start's were in use a moment ago"
        for path in (tmp_path / "kv").glob("*/weights.json"):  # ten minutes later
            note = json.loads(path.read_text())
            if note["version"] == "0":
                assert note["directory"] == str(first)
                path.write_text(json.dumps(note | {"used_unix_s": note["used_unix_s"] - 600}))
                for block in path.parent.glob("*/*.kv"):
                    os.utime(block, (note["used_unix_s"] - 600,) * 2)
        done = await asyncio.to_thread(collect, url, keep_latest=1)
        assert done.num_deleted > 0
        assert [share.num_deleted for share in done.shares if share.namespace.is_in_use] == [0]
        await hold(embedded, new, "", first_turn=2)  # with its hits
        await embedded.service.control.update_weights(str(first))
        reply = await ask(embedded, old.prompt(2), old.num_tokens)
        assert reply.token_ids == old.answers[2], "its blocks are gone, and it is computed again"
        await all_zero(embedded)


def _notes(url: str) -> list[WeightsNote | None]:
    return [one.note for one in summarize(url)]


@pytest.mark.parametrize("mode", [None, PauseMode.RETRACT])
async def test_what_runs_goes_on_and_names_both(
    dirs: tuple[Path, Path], tmp_path: Path, mode: PauseMode | None
) -> None:
    first, second = dirs
    async with cluster(settings(first, f"file://{tmp_path}/kv")) as embedded:
        control, running = embedded.service.control, _Running(embedded, 120)
        await running.until(5)
        if mode is not None:
            await control.pause(mode)
        await control.update_weights(str(second), "step-1")
        await control.resume()
        await running.task
        assert len(running.tokens) == 120
        record = embedded.service.record(running.request.request_id)
        assert record is not None
        before, after = record.weight_versions
        assert (before.version, after.version, after.end) == ("0", "step-1", 120)
        assert (before.start, before.end) == (0, after.start)
        kept = [*PROMPT, *running.tokens]
        num_hit = (await ask(embedded, kept, 1)).record.num_hit_tokens
        if mode is PauseMode.RETRACT:  # all of its KV was computed again
            assert num_hit >= len(PROMPT) // BLOCK_TOKENS * BLOCK_TOKENS
            pure = await ask(embedded, kept[: len(PROMPT) + after.start], after.end - after.start)
            assert pure.token_ids == running.tokens[after.start :]
        else:
            assert num_hit == 0, "KV of two weights is nobody's"
        await all_zero(embedded)


async def test_weights_that_do_not_fit_change_nothing(dirs: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = dirs
    (old,) = conversations(first, 1, num_turns=2)
    torn = tmp_path / "torn"
    shutil.copytree(second, torn)
    shard = next(torn.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    async with cluster(settings(first, f"file://{tmp_path}/kv")) as embedded:
        await hold(embedded, old, "", num_turns=1)
        for directory in (torn, tmp_path / "nowhere"):
            with pytest.raises(WeightsError, match=str(directory)):
                await embedded.service.control.update_weights(str(directory))
        await hold(embedded, old, "", first_turn=1)
        assert embedded.service.control.weight_version == "0"
        await embedded.service.control.update_weights(str(second))


async def test_former_weights_leave_memory(dirs: tuple[Path, Path], tmp_path: Path) -> None:
    def weights_bytes() -> int:
        gc.collect()
        return sum(t.nbytes for t in gc.get_objects() if isinstance(t, torch.nn.Parameter))

    async with cluster(settings(dirs[0], f"file://{tmp_path}/kv")) as embedded:
        before = weights_bytes()
        for directory in (dirs[1], dirs[0], dirs[1]):
            await embedded.service.control.update_weights(str(directory))
        assert weights_bytes() == before


async def test_a_flush_hides_what_is_stored(dirs: tuple[Path, Path], tmp_path: Path) -> None:
    async with cluster(settings(dirs[0], f"file://{tmp_path}/kv")) as embedded:
        await ask(embedded, PROMPT, 2)
        assert (await ask(embedded, PROMPT, 2)).record.num_hit_tokens > 0
        await embedded.service.control.flush()
        assert (await ask(embedded, PROMPT, 2)).record.num_hit_tokens == 0
        assert (await ask(embedded, PROMPT, 2)).record.num_hit_tokens > 0
