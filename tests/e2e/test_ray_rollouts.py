"""One Ray handle, several workers, two clusters: right tokens, trajectories that stay, weights, ends and losses."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dualpath.core.errors import DualPathError, InvalidRequestError
from dualpath.models.init import init_model
from dualpath.models.noise import add_noise
from tests.e2e.cluster_kit import BLOCK_TOKENS, Conversation, conversations

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

SMALL = {"prefill": 1, "decode": 1, "threads_per_engine": 1, "block_tokens": BLOCK_TOKENS, "device": "cpu"}
SMALL |= {"max_context_tokens": 1024, "decode_kv_tokens": 8192}


@pytest.fixture(scope="module")
def dirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and the same with other weights."""
    base = tmp_path_factory.mktemp("ray-rollouts")
    first = init_model("llama", base / "tiny", layers=2)
    return first, add_noise(first, base / "step-1", scale=0.5)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    from dualpath.ray.runtime import import_ray

    ray = import_ray()
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_worker_niceness", "0")  # else workers wait for everything else on the machine
    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield ray
    ray.shutdown()
    patch.undo()


@pytest.fixture(scope="module")
def mark(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("replicas"))


@pytest.fixture(scope="module")
def handle(ray: Any, dirs: tuple[Path, Path], mark: str) -> Iterator[Any]:
    """Its tests come in the order of the file: the last one loses a replica."""
    from dualpath.ray.rollouts import start_rollouts

    options = {"runtime_env": {"env_vars": {"DUALPATH_TEST_MARK": mark}}}
    store = f"file://{mark}/kv"
    handle = start_rollouts(model=str(dirs[0]), store=store, replicas=2, actor_options=options, **SMALL)
    yield handle
    ray.get(handle.stop.remote())


def hold(handle: Any, talks: list[tuple[str, Conversation]]) -> list[tuple[str, int, int, list[int]]]:
    """What a worker does, in a process of its own: (trajectory, turn, replica, tokens) of every turn, hits checked."""
    import ray

    found = []
    for turn in range(len(talks[0][1].appends)):
        calls = []
        for name, talk in talks:
            sampling = {"max_new_tokens": talk.num_tokens, "temperature": 0.0, "ignore_eos": True, "logprobs": True}
            calls.append(handle.generate.remote(talk.prompt(turn), sampling, request_id=name))
        for (name, talk), output in zip(talks, ray.get(calls), strict=True):
            earlier = len(talk.prompt(turn - 1)) + talk.num_tokens if turn else 0
            assert output.num_hit_tokens == earlier // BLOCK_TOKENS * BLOCK_TOKENS, (name, turn)
            assert len(output.log_probs) == talk.num_tokens
            assert output.stop_reason == "completed"
            found.append((name, turn, output.replica, output.token_ids))
    return found


def test_workers_share_a_handle_and_trajectories_stay(ray: Any, handle: Any, dirs: tuple[Path, Path]) -> None:
    talks = [(f"t{number}", talk) for number, talk in enumerate(conversations(dirs[0], 4, num_turns=3))]
    worker = ray.remote(num_cpus=1)(hold)
    found = [*ray.get(worker.remote(handle, talks[:2])), *ray.get(worker.remote(handle, talks[2:]))]
    for name, turn, _, tokens in found:
        assert tokens == dict(talks)[name].answers[turn], f"{name}, turn {turn}: another answer than transformers'"
    homes = {name: {replica for other, _, replica, _ in found if other == name} for name, _ in talks}
    assert all(len(home) == 1 for home in homes.values()), "a trajectory has moved"
    assert {replica for home in homes.values() for replica in home} == {0, 1}


def test_new_weights_come_to_all_replicas(ray: Any, handle: Any, dirs: tuple[Path, Path]) -> None:
    assert ray.get(handle.update_weights.remote(str(dirs[1]), "step-1")) == "step-1"
    (talk,) = conversations(dirs[1], 1, num_turns=1)
    sampling = {"max_tokens": talk.num_tokens, "temperature": 0.0, "ignore_eos": True}
    outputs = ray.get([handle.generate.remote(talk.prompt(0), sampling, request_id=f"w{one}") for one in range(4)])
    assert all(output.token_ids == talk.answers[0] for output in outputs)
    assert {output.replica for output in outputs} == {0, 1}
    assert {span.version for output in outputs for span in output.weight_versions} == {"step-1"}
    with pytest.raises(DualPathError, match=r"replica 0: .*/nowhere"):
        ray.get(handle.update_weights.remote("/nowhere"))


async def test_abort_ends_a_trajectorys_requests_with_what_they_have(handle: Any) -> None:
    long = {"max_tokens": 900, "temperature": 0.0, "ignore_eos": True}
    running = [handle.generate.remote([40, 41, 42], long, request_id=name) for name in ("goes", "stays")]
    deadline_s = time.monotonic() + 60
    while not await handle.abort.remote(["goes"]):
        assert time.monotonic() < deadline_s
    aborted = await running[0]
    assert aborted.stop_reason == "aborted"
    assert len(aborted.token_ids) < 900
    stayed = await running[1]
    assert (stayed.stop_reason, len(stayed.token_ids)) == ("completed", 900)


def replica_pids(mark: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"DUALPATH_TEST_MARK={mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found


async def test_bad_calls_are_said_and_a_lost_replicas_work_goes_on(handle: Any, mark: str) -> None:
    with pytest.raises(InvalidRequestError, match="temprature"):
        await handle.generate.remote([40], {"temprature": 0}, request_id="x")
    with pytest.raises(InvalidRequestError, match="images"):
        await handle.generate.remote([40], {}, request_id="x", image_data=["picture"])
    with pytest.raises(InvalidRequestError):
        await handle.generate.remote([10**9], {"max_tokens": 1}, request_id="x")
    long = {"max_tokens": 900, "temperature": 0.0, "ignore_eos": True}
    truth = (await handle.generate.remote([50, 51], long, request_id="first")).token_ids
    names = [f"l{number}" for number in range(4)]
    running = [handle.generate.remote([50, 51], long, request_id=name) for name in names]
    await asyncio.sleep(0.3)
    os.kill(max(replica_pids(mark)), signal.SIGKILL)
    outputs = await asyncio.gather(*running)
    assert all(output.token_ids == truth for output in outputs)
    again = [await handle.generate.remote([50, 51], long | {"max_tokens": 2}, request_id=name) for name in names]
    assert len({output.replica for output in again}) == 1
    assert await handle.num_replicas.remote() == 1


def test_a_start_that_fails_is_one_error(ray: Any, tmp_path: Path) -> None:
    from dualpath.ray.rollouts import start_rollouts

    with pytest.raises(DualPathError, match=f"{tmp_path}/none") as raised:
        start_rollouts(model=f"{tmp_path}/none", store="memory://", replicas=2, **SMALL)
    assert "\n" not in str(raised.value)
