"""``dualpath up`` with two gateways: one cluster behind both, and whoever dies takes nothing of the others along."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.cluster_kit import conversations
from tests.e2e.ray_kit import BLOCK_TOKENS, UpSystem, actors_of, dualpath, is_alive, text_of, until_healthy, up
from tests.listening import listening

from dualpath.config import GatewayConfig
from dualpath.ray.run_dir import RunDir

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

NAME = "test-gateways"
PROMPT = [32 + (i * 11 + i * i // 3) % 90 for i in range(5 * BLOCK_TOKENS + 5)]
NUM_TOKENS = 1900  # ten seconds: what happens in the middle of a stream is in it also where its reader lags


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dualpath.models.init import init_model

    return init_model("llama", tmp_path_factory.mktemp("ray") / "tiny", layers=2)


@pytest.fixture(scope="module")
def pair(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[UpSystem, UpSystem]]:
    """The system as its first gateway shows it, and as its second does."""
    with up(model_dir, tmp_path_factory.mktemp("system"), NAME, "--gateways", "2") as system:
        print(f"up after {system.started_s:.1f} s")
        state = RunDir.of(NAME).read()
        assert state is not None
        first, second = state.urls
        assert first == system.url
        yield system, UpSystem(NAME, second, 0.0)


def process_of(gateway: UpSystem) -> int:
    port = int(gateway.url.rpartition(":")[2])
    (pid,) = (p for p in actors("GatewayFront") if port in {number for _, number in listening(p)})
    return pid


actors = partial(actors_of, NAME)


async def test_what_one_gateway_has_stored_the_other_finds(pair, model_dir):
    from dualpath.gateway.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(model_dir)
    (talk,) = conversations(model_dir, 1, 4)
    for turn in range(4):
        answer = await pair[turn % 2].complete(talk.prompt(turn), talk.num_tokens)
        assert answer["choices"][0]["text"] == tokenizer.decode(talk.answers[turn], skip_special_tokens=False)
        earlier = len(talk.prompt(turn - 1)) + talk.num_tokens if turn else 0
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == earlier // BLOCK_TOKENS * BLOCK_TOKENS
    tokenizer.close()
    await pair[1].nothing_held()


async def test_each_gateway_shows_all_requests_and_all_of_the_clusters_state(pair):
    ids = [(await gateway.complete(PROMPT, 3, cache_salt=gateway.url))["id"] for gateway in pair]
    async with httpx.AsyncClient(timeout=30) as http:
        for gateway in pair:
            found = (await http.get(f"{gateway.url}/v1/dualpath/requests?limit=2")).json()
            assert [record["request_id"] for record in found["data"]] == ids[::-1]
            assert found["missing"] == []
            for request_id in ids:
                shown = dualpath("why", request_id, "--url", gateway.url)
                assert (shown.returncode, "finished" in shown.stdout) == (0, True), shown.stderr
            stats = (await http.get(f"{gateway.url}/v1/dualpath/stats")).json()
            assert {node["node_id"] for node in stats["nodes"]} == {"pe0", "de0", "de1"}
            assert {engine["node_id"] for engine in stats["engines"]} == {"pe0", "de0", "de1"}
            assert stats["facts"]["num_layers"] == 2
            metrics = (await http.get(f"{gateway.url}/metrics")).text
            assert 'dualpath_node_up{node="pe0",role="prefill"} 1.0' in metrics


async def test_a_gateway_that_stands_still_is_named_and_the_others_requests_are_shown(pair):
    first, second = pair
    mine = (await second.complete(PROMPT, 3))["id"]
    async with httpx.AsyncClient(base_url=second.url, timeout=30) as http:

        async def ask() -> dict[str, Any]:
            found: dict[str, Any] = (await http.get("/v1/dualpath/requests?limit=1")).json()
            return found

        pid = process_of(first)
        os.kill(pid, signal.SIGSTOP)
        try:
            stopped = await ask()
        finally:
            os.kill(pid, signal.SIGCONT)
        assert (stopped["data"][0]["request_id"], stopped["missing"]) == (mine, ["gateway0"])
        async with asyncio.timeout(60):
            while (await ask())["missing"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def test_status_names_all_gateways(pair):
    status = pair[0].status()
    assert status["gateways"] == [{"url": gateway.url, "answers": True} for gateway in pair]
    shown = dualpath("status", "--cluster-name", NAME)
    assert all(gateway.url in shown.stdout for gateway in pair)


async def test_who_asks_one_gateway_asks_the_cluster(pair):
    first, second = pair
    truth = (await second.complete(PROMPT, NUM_TOKENS, cache_salt="unpaused"))["choices"][0]["text"]
    begun = asyncio.Event()
    running = asyncio.create_task(text_of(second.stream(PROMPT, NUM_TOKENS, cache_salt="paused"), begun))
    await begun.wait()
    async with httpx.AsyncClient(timeout=60) as http:

        async def ask(gateway: UpSystem, path: str) -> dict[str, Any]:
            answer = await http.post(f"{gateway.url}{path}")
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()
            return found

        await ask(first, "/pause?mode=keep")
        assert (await http.get(f"{second.url}/is_paused")).json() == {"is_paused": True}
        late = asyncio.create_task(first.complete(PROMPT, 3, cache_salt="paused"))
        await asyncio.sleep(3.0)
        assert not running.done()
        assert not late.done()
        await ask(second, "/resume")
        assert await running == truth
        assert truth.startswith((await late)["choices"][0]["text"].rstrip("\ufffd"))
        assert (await second.record())["num_retries"] == 0
        begun = asyncio.Event()
        running = asyncio.create_task(text_of(second.stream(PROMPT, NUM_TOKENS, cache_salt="aborted"), begun))
        await begun.wait()
        assert (await ask(first, "/abort_requests"))["aborted"] == 1
        assert len(await running) < len(truth)
    await first.nothing_held()


async def test_kill_9_of_a_gateway_breaks_its_own_streams_only(pair):
    first, second = pair
    truth = (await second.complete(PROMPT, NUM_TOKENS, cache_salt="truth"))["choices"][0]["text"]
    begun = asyncio.Event(), asyncio.Event()
    streams = [g.stream(PROMPT, NUM_TOKENS, cache_salt=g.url) for g in pair]
    running = [asyncio.create_task(text_of(s, event)) for s, event in zip(streams, begun, strict=True)]
    for event in begun:
        await event.wait()
    pid = process_of(first)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(httpx.HTTPError):
        await running[0]
    shown = dualpath("status", "--cluster-name", NAME)
    assert shown.returncode == 0
    assert await running[1] == truth
    record = await second.record()
    assert record["num_retries"] == 0
    print(f"the gateway is back after {await until_healthy(first):.1f} s")
    assert process_of(first) != pid
    await second.nothing_held()
    again = await first.complete(PROMPT, NUM_TOKENS, cache_salt="after")
    assert again["choices"][0]["text"] == truth


async def test_streams_go_on_while_the_scheduler_is_started_again(pair):
    truth = (await pair[1].complete(PROMPT, NUM_TOKENS, cache_salt="before"))["choices"][0]["text"]
    begun = asyncio.Event(), asyncio.Event()
    streams = [g.stream(PROMPT, NUM_TOKENS, cache_salt=f"without {g.url}") for g in pair]
    running = [asyncio.create_task(text_of(s, event)) for s, event in zip(streams, begun, strict=True)]
    for event in begun:
        await event.wait()
    (pid,) = actors("SchedulerFront")
    os.kill(pid, signal.SIGKILL)
    start_s = time.monotonic()
    assert [await text for text in running] == [truth, truth]
    print(f"streams ended {time.monotonic() - start_s:.1f} s after the scheduler's death")
    for gateway in pair:
        assert (await gateway.record())["num_retries"] == 0
        answer = await gateway.complete(PROMPT, NUM_TOKENS, cache_salt=f"again {gateway.url}")
        assert answer["choices"][0]["text"] == truth
    print(f"served again {time.monotonic() - start_s:.1f} s after the scheduler's death")
    assert actors("SchedulerFront") != [pid]
    await pair[0].nothing_held()


async def test_down_ends_all_of_it_and_gives_running_requests_no_more_than_it_says(pair):
    begun = asyncio.Event()
    running = asyncio.create_task(text_of(pair[1].stream(PROMPT, NUM_TOKENS, cache_salt="cut"), begun))
    await begun.wait()
    async with httpx.AsyncClient(timeout=60) as http:
        assert (await http.post(f"{pair[0].url}/pause?mode=keep")).status_code == 200
    pids = RunDir.of(NAME).processes()
    start_s = time.monotonic()
    done = await asyncio.to_thread(dualpath, "down", "--cluster-name", NAME, "--drain-s", "0")
    assert time.monotonic() - start_s < GatewayConfig().drain_s
    with pytest.raises(AssertionError, match="shutting_down"):  # the client is told
        await running
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stdout
    assert not [pid for pid in pids if is_alive(pid)]
