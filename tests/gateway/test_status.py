"""Health, models, tokenizer endpoints, metrics, the request log."""

from __future__ import annotations

import re

import httpx
import pytest
from openai import AsyncOpenAI
from tests.gateway.fakes import FakeBackend

from dualpath import __version__
from dualpath.core.stats import ClusterStats
from dualpath.gateway.app import create_app
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.text.tokenizer import Tokenizer

REQUIRED = {
    'dualpath_storage_read_bytes_total{engine="pe0",node="n0",role="prefill"}': 100,
    'dualpath_storage_read_bytes_total{engine="de0",node="n1",role="decode"}': 300,
    'dualpath_storage_write_bytes_total{engine="de0",node="n1",role="decode"}': 50,
    'dualpath_kv_transfer_bytes_total{direction="decode_to_prefill"}': 15,
    'dualpath_kv_transfer_bytes_total{direction="prefill_to_decode"}': 3,
    'dualpath_requests_total{outcome="finished"}': 1,
    'dualpath_requests_total{outcome="failed"}': 0,
    "dualpath_ttft_seconds_count": 1,
    "dualpath_tpot_seconds_count": 1,
    'dualpath_phase_seconds_sum{phase="decoding"}': 1,
    'dualpath_read_queue_tokens{engine="pe0",node="n0",role="prefill"}': 64,
    'dualpath_staging_slots{engine="pe0",node="n0",role="prefill"}': 8,
    'dualpath_staging_slots_used{engine="pe0",node="n0",role="prefill"}': 2,
    'dualpath_device_kv_bytes{engine="de0",node="n1",role="decode"}': 1000,
    'dualpath_device_kv_used_bytes{engine="de0",node="n1",role="decode"}': 400,
    'dualpath_device_kv_peak_bytes{engine="de0",node="n1",role="decode"}': 900,
    "dualpath_queued_requests": 1,
    "dualpath_running_requests": 2,
    "dualpath_index_blocks": 7,
    'dualpath_blocks_missing_total{engine="de0",node="n1",role="decode"}': 0,
    'dualpath_blocks_corrupt_total{engine="de0",node="n1",role="decode"}': 1,
    'dualpath_blocks_failed_total{engine="de0",node="n1",role="decode"}': 0,
    'dualpath_blocks_not_persisted_total{engine="de0",node="n1",role="decode"}': 0,
    'dualpath_kv_corrupt_total{engine="de0",node="n1",role="decode"}': 2,
    "dualpath_recomputed_blocks_total": 0,
    "dualpath_prompt_tokens_total": 3,
    "dualpath_hit_tokens_total": 2,
    "dualpath_generated_tokens_total": 6,
}


async def test_metrics(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.num_hit_tokens = 2
    await http.post("/v1/completions", json={"prompt": "abc"})
    answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = dict(re.findall(r"^(dualpath_[^ ]+(?:\{.*\})?) (\S+)$", answer.text, re.MULTILINE))
    assert {name: float(samples[name]) for name in REQUIRED} == REQUIRED


async def test_health_and_version(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert (await http.get("/health")).json() == {"problems": []}
    backend.found = ("the storage of 1 nodes does not answer",)
    response = await http.get("/health")
    assert (response.status_code, response.json()) == (200, {"problems": list(backend.found)})
    await backend.control.pause()
    assert (await http.get("/health")).json()["problems"][1:] == ["paused: requests wait until POST /resume"]
    assert (await http.get("/version")).json() == {"version": __version__}
    backend.is_ready = False
    assert (await http.get("/health")).status_code == 503


async def test_models(openai: AsyncOpenAI) -> None:
    (model,) = [model async for model in openai.models.list()]
    assert (model.id, model.object, model.owned_by) == ("fake", "model", "dualpath")
    assert model.max_model_len == 1024  # type: ignore[attr-defined]
    assert (await openai.models.retrieve("fake")).id == "fake"


async def test_tokenize_and_detokenize(http: httpx.AsyncClient) -> None:
    answer = (await http.post("/tokenize", json={"model": "fake", "prompt": "aé", "return_token_strs": True})).json()
    assert (answer["count"], answer["max_model_len"], answer["tokens"]) == (3, 1024, [97, 0xC3, 0xA9])
    assert answer["token_strs"][0] == "a"
    messages = [{"role": "user", "content": "hi"}]
    ids = (await http.post("/tokenize", json={"messages": messages})).json()["tokens"]
    text = (await http.post("/detokenize", json={"tokens": ids})).json()
    assert text == {"prompt": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"}
    assert (await http.post("/tokenize", json={})).status_code == 400
    assert (await http.post("/detokenize", json={"tokens": [10_000]})).json()["error"]["param"] == "tokens"


async def test_request_log_and_stats(http: httpx.AsyncClient) -> None:
    for _ in range(3):
        first = await http.post("/v1/completions", json={"prompt": "abc"})
    data = (await http.get("/v1/dualpath/requests", params={"limit": 2})).json()["data"]
    assert len(data) == 2
    assert data[0]["request_id"] == first.json()["id"] == first.headers["x-request-id"]
    assert (data[0]["num_prompt_tokens"], data[0]["outcome"]) == (3, "finished")
    assert data[0]["phases_s"] == {"prefilling": 0.5, "decoding": 1.0}
    params = {"request_id": data[1]["request_id"]}
    assert (await http.get("/v1/dualpath/requests", params=params)).json()["data"] == data[1:]
    assert (await http.get("/v1/dualpath/requests", params={"request_id": "nobody's"})).json()["data"] == []
    stats = (await http.get("/v1/dualpath/stats")).json()
    assert [(engine["engine_id"], engine["role"]) for engine in stats["engines"]] == [
        ("pe0", "prefill"),
        ("de0", "decode"),
    ]
    for limit in ("0", "x", "-1"):
        answer = await http.get("/v1/dualpath/requests", params={"limit": limit})
        assert answer.json()["error"]["param"] == "limit"


async def test_the_request_log_names_gateways_that_gave_no_answer(
    http: httpx.AsyncClient, backend: FakeBackend
) -> None:
    assert (await http.get("/v1/dualpath/requests")).json()["missing"] == []
    backend.control.missing = ("gateway1",)
    assert (await http.get("/v1/dualpath/requests")).json()["missing"] == ["gateway1"]


async def test_head_is_get_without_a_body(http: httpx.AsyncClient) -> None:
    for path in ("/health", "/ping", "/v1/models", "/metrics", "/version", "/load"):
        answer = await http.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path
        assert answer.headers["content-type"] == (await http.get(path)).headers["content-type"]
    assert (await http.head("/v1/completions")).status_code == 405
    assert (await http.head("/v1/nothing")).status_code == 404


async def test_load_and_tokenizer_info(http: httpx.AsyncClient) -> None:
    assert (await http.get("/load")).json() == {"server_load": 3}
    info = (await http.get("/tokenizer_info")).json()
    assert info["eos_token"] == "<|im_end|>"
    assert "messages" in info["chat_template"]
    assert not any("/" in str(value) for name, value in info.items() if name != "chat_template"), "paths of the server"


@pytest.mark.parametrize("origins", [("*",), ("https://chat.example",)])
async def test_browsers_may_ask_where_it_is_allowed(
    backend: FakeBackend, tokenizer: Tokenizer, origins: tuple[str, ...]
) -> None:
    app = create_app(backend, tokenizer, GatewaySettings(allowed_origins=origins, api_keys=("k",)))
    asks = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
    asks |= {"Access-Control-Request-Headers": "authorization,content-type"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
        answer = await http.options("/v1/chat/completions", headers=asks)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] in ("*", "https://chat.example")
        for key, status in (("k", 200), ("x", 401)):
            headers = {"Origin": "https://chat.example", "Authorization": f"Bearer {key}"}
            answer = await http.post("/v1/completions", json={"prompt": "x"}, headers=headers)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] in ("*", "https://chat.example")
        answer = await http.get("/health", headers={"Origin": "https://other.example"})
        assert answer.headers.get("access-control-allow-origin") == ("*" if origins == ("*",) else None)


async def test_browsers_may_not_ask_by_default(http: httpx.AsyncClient) -> None:
    answer = await http.get("/health", headers={"Origin": "https://chat.example"})
    assert "access-control-allow-origin" not in answer.headers


async def test_liveness_asks_engines(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert (await http.get("/liveness")).json() == {"engines": 2}

    async def nobody() -> ClusterStats:
        return ClusterStats(())

    async def hangs() -> ClusterStats:
        raise TimeoutError

    for stats in (nobody, hangs):
        backend.stats = stats  # type: ignore[method-assign]
        assert (await http.get("/liveness")).status_code == 503
