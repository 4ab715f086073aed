"""Health, models, tokenizer endpoints, metrics, the request log."""

from __future__ import annotations

import re

import httpx
from openai import AsyncOpenAI
from tests.gateway.fakes import FakeBackend

from dualpath import __version__

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
    stats = (await http.get("/v1/dualpath/stats")).json()
    assert [(engine["engine_id"], engine["role"]) for engine in stats["engines"]] == [
        ("pe0", "prefill"),
        ("de0", "decode"),
    ]
    for limit in ("0", "x", "-1"):
        answer = await http.get("/v1/dualpath/requests", params={"limit": limit})
        assert answer.json()["error"]["param"] == "limit"
