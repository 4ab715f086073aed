"""``dualpath up`` on a Ray of its own: right tokens, killed and stopped processes, and nothing left after ``down``."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dualpath.ray.run_dir import RunDir
from tests.e2e.cluster_kit import conversations
from tests.e2e.ray_kit import BLOCK_TOKENS, UpSystem, dualpath, environment_of, is_alive, up

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

NAME = "test-ray"
PROMPT = [32 + (i * 11 + i * i // 3) % 90 for i in range(5 * BLOCK_TOKENS + 5)]
NUM_TOKENS = 700
NOTICED_S = 5.0


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dualpath.models.init import init_model

    return init_model("llama", tmp_path_factory.mktemp("ray") / "tiny", layers=2)


@pytest.fixture(scope="module")
def system(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpSystem]:
    with up(model_dir, tmp_path_factory.mktemp("system"), NAME) as system:
        print(f"up after {system.started_s:.1f} s")
        yield system


@pytest.fixture(scope="module")
def truth(model_dir: Path) -> str:
    """What transformers' ``generate`` answers to PROMPT, as text."""
    import torch
    from transformers import AutoModelForCausalLM

    from dualpath.gateway.text.tokenizer import Tokenizer

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            do_sample=False,
        )
    tokenizer = Tokenizer.load(model_dir)
    try:
        return tokenizer.decode(output[0, ids.shape[1] :].tolist(), skip_special_tokens=False)
    finally:
        tokenizer.close()


async def test_turns_equal_transformers_and_the_second_one_hits(system, model_dir):
    from dualpath.gateway.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(model_dir)
    (talk,) = conversations(model_dir, 1, 3)
    for turn in range(3):
        answer = await system.complete(talk.prompt(turn), talk.num_tokens)
        assert answer["choices"][0]["text"] == tokenizer.decode(talk.answers[turn], skip_special_tokens=False)
        earlier = len(talk.prompt(turn - 1)) + talk.num_tokens if turn else 0
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == earlier // BLOCK_TOKENS * BLOCK_TOKENS
    tokenizer.close()
    await system.nothing_held()


async def test_status_shows_nodes_processes_and_nics(system):
    status = system.status()
    nodes = {node["node_id"]: node for node in status["nodes"]}
    assert set(nodes) == {"pe0", "de0", "de1"}
    assert len({node["pid"] for node in nodes.values()}) == 3
    assert nodes["pe0"]["storage_nic_bytes_per_s"] == 1e8
    assert all(node["is_up"] and node["storage_read_bytes_per_s"] >= 0 for node in nodes.values())
    assert environment_of(nodes["de1"]["pid"])["DUALPATH_TEST_MARK"] == "de1"
    shown = dualpath("status", "--cluster-name", NAME)
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in ("pe0", "de0", "de1", "800"))


async def interrupted(system: UpSystem, salt: str, how: signal.Signals) -> tuple[str, dict[str, Any], int]:
    """A stream whose decode engine gets a signal in the middle: all its text, its record, the engine's process."""
    text, num_chunks, pid = "", 0, 0
    async for piece in system.stream(PROMPT, NUM_TOKENS, cache_salt=salt):
        text += piece
        num_chunks += 1
        if num_chunks == 80:
            pid = (await system.node(await system.decode_engine()))["pid"]
            os.kill(pid, how)
    return text, await system.record(), pid


async def test_kill_9_of_a_decode_process_costs_the_client_nothing_but_time(system, truth):
    text, record, pid = await interrupted(system, "killed", signal.SIGKILL)
    assert text == truth, "a gap, a repeat or another token"
    assert record["num_retries"] == 1
    lost = await new_process(system, pid)
    await system.serving(lost)
    again = await system.complete(PROMPT, NUM_TOKENS, cache_salt="killed")
    assert again["choices"][0]["text"] == truth
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    await system.nothing_held()


async def new_process(system: UpSystem, dead_pid: int) -> str:
    """Wait until no node's process is the dead one; the node that had it, or has been silent, is the other."""
    for name in ("de0", "de1"):
        if (await system.node(name))["pid"] == dead_pid:
            await system.until(name, is_up=True)
            assert (await system.node(name))["pid"] != dead_pid
            return name
    return "de0"


async def test_a_stopped_process_is_noticed_replaced_in_its_work_and_rejoins(system, truth):
    """SIGSTOP: nothing closes, nothing fails, it just says nothing any more."""
    lost, pid = "", 0
    text, num_chunks, noticed_s = "", 0, None
    async for piece in system.stream(PROMPT, NUM_TOKENS, cache_salt="stopped"):
        text += piece
        num_chunks += 1
        if num_chunks == 80:
            lost = await system.decode_engine()
            pid = (await system.node(lost))["pid"]
            os.kill(pid, signal.SIGSTOP)
            noticed_s = await system.until(lost, is_up=False)
    assert noticed_s is not None
    print(f"noticed after {noticed_s:.2f} s")
    assert noticed_s < NOTICED_S
    assert text == truth, "a gap, a repeat or another token"
    record = await system.record()
    assert record["num_retries"] == 1
    assert record["decode_engine"] != lost
    os.kill(pid, signal.SIGCONT)
    await system.until(lost, is_up=True)
    await system.serving(lost)
    assert (await system.node(lost))["pid"] == pid, "it was to rejoin, not to be restarted"
    await system.nothing_held()
    for salt in ("after-1", "after-2", "after-3", "after-4"):
        answer = await system.complete(PROMPT, NUM_TOKENS // 2, cache_salt=salt)
        assert truth.startswith(answer["choices"][0]["text"].rstrip("\ufffd"))
    await system.nothing_held()


async def test_a_system_of_the_same_name_from_another_machine_leaves_this_one_alone(
    system, truth, model_dir, tmp_path, monkeypatch
):
    """The other machine: another directory for temporary files, so that nothing here is known there."""
    run_dir = RunDir.of(NAME)
    state = run_dir.read()
    assert state is not None
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "other"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(run_dir.token_file))
    config = _any_config(system, model_dir, tmp_path)
    second = dualpath("up", "--config", str(config), "--address", state.address)
    assert second.returncode == 2, second.stderr
    assert "another system runs on this Ray cluster" in second.stderr
    assert not list((tmp_path / "other").glob("dualpath-*"))
    answer = await system.complete(PROMPT, NUM_TOKENS, cache_salt="undisturbed")
    assert answer["choices"][0]["text"] == truth


async def test_a_name_is_up_once_and_down_leaves_nothing_but_the_store(system, model_dir, tmp_path):
    run_dir = RunDir.of(NAME)
    second = dualpath("up", "--config", str(_any_config(system, model_dir, tmp_path)))
    assert second.returncode == 2
    assert "up already" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    pids = run_dir.processes()
    assert len(pids) >= 5  # Ray's own, three nodes, the gateway
    done = dualpath("down", "--cluster-name", NAME)
    assert done.returncode == 0, done.stderr
    assert not [pid for pid in pids if is_alive(pid)]
    assert not run_dir.processes()
    assert not run_dir.path.exists()
    nothing = dualpath("status", "--cluster-name", NAME)
    assert nothing.returncode == 1
    assert "no system of the name" in nothing.stderr


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_down_leaves_nothing_where_ray_itself_does_not_answer(how, model_dir, tmp_path):
    """A stopped raylet ends whoever connects to it, a dead one lets him wait."""
    with up(model_dir, tmp_path, NAME):
        run_dir = RunDir.of(NAME)
        pids = run_dir.processes()
        (raylet,) = (pid for pid in pids if Path(f"/proc/{pid}/comm").read_text() == "raylet\n")
        os.kill(raylet, how)
        done = dualpath("down", "--cluster-name", NAME, "--drain-s", "0")
    assert done.returncode == 0, done.stderr
    assert "warning: no connection to Ray" in done.stdout
    assert not [pid for pid in pids if is_alive(pid)]
    assert not run_dir.path.exists()


def _any_config(system: UpSystem, model_dir: Path, tmp_path: Path) -> Path:
    """Under the name that is up, on another port."""
    from dualpath.cluster.free_ports import free_ports
    from tests.e2e.ray_kit import CONFIG

    config = tmp_path / "second.toml"
    text = CONFIG.format(
        model=model_dir, store=tmp_path / "kv", block_tokens=BLOCK_TOKENS, port=free_ports(1)[0], name=NAME, mbps=100.0
    )
    config.write_text(text, encoding="utf-8")
    return config
