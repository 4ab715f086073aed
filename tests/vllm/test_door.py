"""The door in vLLM's API server: who may enter, and what becomes of the engine whatever happens behind it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from dualpath.core.handshake import SECRET_VARIABLE, door_key
from dualpath.vllm import door
from dualpath.vllm.door import KEY_HEADER, PATH, Door

SECRET = "a secret of sixteen bytes"


class _Engine:
    """vLLM's ``AsyncLLM`` as the door asks it. ``num_stuck``: times that KV is not given up."""

    def __init__(self, num_stuck: int = 0, answer: Any = None) -> None:
        self.num_stuck, self.answer, self.calls, self.paused = num_stuck, answer, list[str](), False

    async def is_paused(self) -> bool:
        return self.paused

    async def pause_generation(self, mode: str, clear_cache: bool) -> None:
        self.calls.append("pause")
        self.paused = True

    async def resume_generation(self) -> None:
        self.calls.append("resume")
        self.paused = False

    async def reset_prefix_cache(self, reset_running_requests: bool) -> bool:
        assert self.paused
        self.num_stuck -= 1
        if self.num_stuck > 0:
            raise RuntimeError("requests wait for remote KV")
        self.calls.append("reset")
        return self.num_stuck < 0

    async def collective_rpc(self, method: str, args: tuple[str, ...] = ()) -> list[Any]:
        if method == "dualpath_changes_kv":
            return [args != ("same",)]
        self.calls.append(method.removeprefix("dualpath_"))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer if isinstance(self.answer, list) else [self.answer]


async def _knock(engine: _Engine, verb: str, body: bytes = b"{}", key: str | None = None) -> httpx.Response:
    async def vllm(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    within = Door(vllm)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await within(scope | {"app": SimpleNamespace(state=SimpleNamespace(engine_client=engine))}, receive, send)

    headers = {KEY_HEADER: door_key(SECRET.encode()) if key is None else key}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://v") as client:
        return await client.post(verb if verb.startswith("/") else f"{PATH}{verb}", content=body, headers=headers)


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)


async def test_the_door_is_shut_to_whoever_lacks_the_secret() -> None:
    engine = _Engine()
    assert (await _knock(engine, "weights", key="x")).status_code == 401
    assert (await _knock(engine, "weights", key="")).status_code == 401
    assert (await _knock(engine, "other")).status_code == 404
    assert (await _knock(engine, "/v1/models", key="x")).status_code == 418, "vLLM's own"
    assert engine.calls == []


@pytest.mark.parametrize("was_paused", [False, True])
async def test_a_change_waits_until_no_request_has_kv(was_paused: bool) -> None:
    engine = _Engine(num_stuck=3)
    engine.paused = was_paused
    assert (await _knock(engine, "weights")).status_code == 200
    tries = ["pause", "resume", "pause", "resume", "pause", "reset", "resume", "pause", "reset"]
    assert engine.calls == [*tries, "change_weights", *([] if was_paused else ["resume"])]
    assert engine.paused is was_paused


async def test_kv_that_holds_on_ends_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_STILL_S", 0.1)
    engine = _Engine(num_stuck=1000)
    answer = await _knock(engine, "weights")
    assert answer.status_code == 500
    assert "requests hold on to their KV: requests wait for remote KV" in answer.text
    assert "change_weights" not in engine.calls
    assert not engine.paused


async def test_the_same_weights_by_another_name_disturb_nobody() -> None:
    engine = _Engine()
    assert (await _knock(engine, "weights", b"same")).status_code == 200
    assert engine.calls == ["change_weights", "resume"]


@pytest.mark.parametrize(("answer", "status"), [("not these", 409), (RuntimeError("worker died"), 500)])
async def test_what_goes_wrong_is_said_and_the_engine_goes_on(answer: Any, status: int) -> None:
    engine = _Engine(answer=answer)
    said = await _knock(engine, "weights")
    assert said.status_code == status
    assert str(answer.args[0] if isinstance(answer, Exception) else answer) in said.json()["error"]["message"]
    assert not engine.paused


async def test_all_workers_of_a_server_change_or_none_does() -> None:
    """Where only some did, all end: what they would add up is of no weights."""
    engine = _Engine(answer=[None, None])
    assert (await _knock(engine, "weights")).status_code == 200
    engine = _Engine(answer=["not these", "nor these"])
    said = await _knock(engine, "weights")
    assert (said.status_code, said.json()["error"]["message"]) == (409, "not these")
    assert "end" not in engine.calls
    engine = _Engine(answer=[None, "not these"])
    said = await _knock(engine, "weights")
    assert said.status_code == 500
    assert "some workers have other weights, and some have not: not these" in said.json()["error"]["message"]
    assert "end" in engine.calls
    assert (await _knock(_Engine(answer=[None, "no reload"]), "check")).status_code == 409


async def test_workers_without_our_calls_are_found_before_anything_changes() -> None:
    said = await _knock(
        _Engine(answer=NotImplementedError("Method 'dualpath_check_weights' is not implemented.")), "check"
    )
    assert said.status_code == 409
    assert "its workers know nothing of changing weights" in said.json()["error"]["message"]
