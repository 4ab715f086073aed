"""What RL frameworks call: the bodies that their clients send, the answers that they read, who may use the verbs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from typing import Any

import httpx
import pytest
from tests.gateway.fakes import EOS_ID, FakeBackend, says
from tests.gateway.sse import events_of

from dualpath.core.errors import RequestAbortedError, WeightsError
from dualpath.core.ids import RequestId
from dualpath.core.pause import PauseMode
from dualpath.core.request import Request, RequestRecord, WeightSpan
from dualpath.gateway.app import create_app
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.text.tokenizer import Tokenizer

HELLO = [*b"Hello", EOS_ID]


async def _post(http: httpx.AsyncClient, path: str, body: Any = None, **options: Any) -> Any:
    response = await http.post(path, json=body, **options)
    assert response.status_code == 200, response.text
    return response.json() if response.content else None


# -- vLLM's -----------------------------------------------------------------------------------------------------------


async def test_token_ids_in_and_out(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    params = {"temperature": 0.5, "max_tokens": 20, "logprobs": 1, "detokenize": False, "top_k": -1}
    body = {"model": "fake", "token_ids": [5, 6, 7], "sampling_params": params, "request_id": "mine"}
    answer = await _post(http, "/inference/v1/generate", body, headers={"X-Session-ID": "trajectory-1"})
    (choice,) = answer["choices"]
    assert choice["token_ids"] == HELLO
    assert choice["finish_reason"] == "stop"
    assert [entry["token_id"] for entry in choice["logprobs"]["content"]] == HELLO
    assert all(entry["logprob"] <= 0 for entry in choice["logprobs"]["content"])
    assert answer["request_id"] == "mine"
    assert answer["weight_version"] == "0"
    assert answer["usage"]["completion_tokens"] == len(HELLO)
    (request,) = backend.requests
    assert request.prompt_token_ids == (5, 6, 7)
    assert (request.sampling.temperature, request.sampling.max_tokens) == (0.5, 20)


async def test_log_probabilities_of_the_prompts_token_ids(http: httpx.AsyncClient) -> None:
    body = {"token_ids": [97, 1], "sampling_params": {"max_tokens": 1, "prompt_logprobs": 1}}
    answer = await _post(http, "/inference/v1/generate", body)
    assert answer["prompt_logprobs"] == [
        None,
        {
            "1": {"logprob": -1.0, "rank": 40, "decoded_token": None},
            "0": {"logprob": -0.5, "rank": 1, "decoded_token": None},
        },
    ]
    refused = await http.post("/generate", json={"input_ids": [97, 1], "sampling_params": {"prompt_logprobs": 1}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt_logprobs")


async def test_as_many_tokens_as_there_is_room_for_unless_told_otherwise(
    http: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await _post(http, "/inference/v1/generate", {"token_ids": [5, 6, 7]})
    assert backend.requests[0].sampling.max_tokens == backend.max_context_tokens - 3


async def test_a_stream_of_token_ids(http: httpx.AsyncClient) -> None:
    body = {"token_ids": [5], "stream": True, "stream_options": {"include_usage": True}, "sampling_params": {}}
    text = (await http.post("/inference/v1/generate", json=body)).text
    *events, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert done == "[DONE]"
    pieces = [json.loads(event) for event in events]
    assert [token for piece in pieces for choice in piece["choices"] for token in choice["token_ids"]] == HELLO
    assert pieces[-1]["usage"]["completion_tokens"] == len(HELLO)
    assert pieces[-2]["choices"][0]["finish_reason"] == "stop"


async def test_an_answer_names_all_weights_it_is_made_with(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    spans = [WeightSpan("step-1", 0, 2), WeightSpan("step-2", 2, 6)]

    def named(record: RequestRecord) -> None:
        record.weight_versions = spans

    backend.callbacks.append(named)
    answer = await _post(http, "/inference/v1/generate", {"token_ids": [5]})
    expected = [{"version": span.version, "start": span.start, "end": span.end} for span in spans]
    assert answer["choices"][0]["weight_versions"] == expected
    assert answer["weight_version"] == "step-2"
    sglang = await _post(http, "/generate", {"input_ids": [5]})
    assert sglang["meta_info"]["weight_version"] == "step-2"
    assert sglang["meta_info"]["weight_versions"] == expected


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "token_ids"),
        ({"token_ids": []}, "prompt"),
        ({"token_ids": [999_999]}, "prompt"),
        ({"token_ids": [1], "features": {}}, "features"),
        ({"token_ids": [1], "sampling_params": {"temperature": "hot"}}, "sampling_params"),
        ({"token_ids": [1], "sampling_params": {"temperature": 9}}, "temperature"),
        ({"token_ids": [1], "sampling_params": {"use_beam_search": True}}, "use_beam_search"),
    ],
    ids=["nothing", "empty", "no-token", "pictures", "type", "range", "beams"],
)
async def test_what_is_wrong_is_said(http: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    response = await http.post("/inference/v1/generate", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("path", ["/inference/v1/generate", "/generate"])
async def test_a_clients_id_has_a_longest_length(http: httpx.AsyncClient, path: str) -> None:
    name, tokens = ("request_id", "token_ids") if "inference" in path else ("rid", "input_ids")
    assert (await http.post(path, json={tokens: [5], name: "x" * 256})).status_code == 200
    response = await http.post(path, json={tokens: [5], name: "x" * 257})
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)


async def test_an_update_in_the_order_and_the_words_of_prime_rls_client(
    http: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """prime_rl/utils/client.py: it tries again after 5xx for minutes, and resumes whatever the update came to."""
    assert (await http.get("/health")).status_code == 200
    assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["fake"]
    pause = {"mode": "keep", "clear_cache": "false"}
    for refusal, status in ((None, 200), (WeightsError("torn"), 409)):
        backend.control.asked.clear()
        backend.control.refusal = refusal
        await _post(http, "/pause", params=pause)
        answer = await http.post("/update_weights", json={"weight_dir": "/weights/step_7"})
        assert answer.status_code == status
        await _post(http, "/resume")
        await _post(http, "/resume")
        update = ("update", "/weights/step_7", None)
        assert backend.control.asked == [("pause", PauseMode.KEEP), update, "resume", "resume"]
        assert not backend.control.is_paused


async def test_the_end_of_a_session_is_taken(http: httpx.AsyncClient) -> None:
    assert (await http.post("/finish_session", params={"session_id": "t-1"})).status_code == 200


# -- SGLang's ---------------------------------------------------------------------------------------------------------


async def test_sglangs_clients_find_what_they_read(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    params = {"max_new_tokens": 20, "temperature": 0.0, "no_stop_trim": True, "skip_special_tokens": False}
    body = {"input_ids": [5, 6], "sampling_params": params, "return_logprob": True, "rid": "theirs"}
    answer = await _post(http, "/generate", body)
    meta = answer["meta_info"]
    assert answer["text"].startswith("Hello")
    assert answer["output_ids"] == HELLO
    assert [token_id for _, token_id, _ in meta["output_token_logprobs"]] == HELLO
    assert meta["finish_reason"]["type"] == "stop"
    assert (meta["id"], meta["weight_version"], meta["prompt_tokens"]) == ("theirs", "0", 2)
    backend.script = says("Hello", ends=False)
    cut = await _post(http, "/generate", {"text": "Hi", "sampling_params": {"max_new_tokens": 3}})
    assert cut["meta_info"]["finish_reason"] == {"type": "length", "length": 3}


async def test_a_batch_is_answered_by_a_list(http: httpx.AsyncClient) -> None:
    answers = await _post(http, "/generate", {"input_ids": [[5], [6, 7]]})
    assert [answer["meta_info"]["prompt_tokens"] for answer in answers] == [1, 2]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_each_of_a_batch_has_its_own_hits(http: httpx.AsyncClient, backend: FakeBackend, is_stream: bool) -> None:
    def hit(request: Request) -> list[int]:
        backend.records[request.request_id].num_hit_tokens = len(request.prompt_token_ids) - 1
        return HELLO

    backend.script = hit
    body = {"input_ids": [[5, 6, 7], [6, 7]], "stream": is_stream}
    answer = await http.post("/generate", json=body)
    answers = list({event["index"]: event for event in events_of(answer.text)}.values()) if is_stream else answer.json()
    metas = [answer["meta_info"] for answer in answers]
    assert {meta["prompt_tokens"]: meta["cached_tokens"] for meta in metas} == {3: 2, 2: 1}


async def test_a_stream_of_sglangs_holds_all_there_is_so_far(http: httpx.AsyncClient) -> None:
    text = (await http.post("/generate", json={"input_ids": [5], "stream": True})).text
    *events, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert done == "[DONE]"
    assert json.loads(events[-1])["output_ids"] == HELLO
    assert json.loads(events[0])["output_ids"] == HELLO[:1]


# -- verbs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(PauseMode))
async def test_pause_and_resume(http: httpx.AsyncClient, backend: FakeBackend, mode: PauseMode) -> None:
    assert await _post(http, f"/pause?mode={mode.value}&clear_cache=false") == {"status": "paused"}
    assert (await http.get("/is_paused")).json() == {"is_paused": True}
    assert await _post(http, "/resume") == {"status": "resumed"}
    assert (await http.get("/is_paused")).json() == {"is_paused": False}
    assert backend.control.asked == [("pause", mode), "resume"]


async def test_weights_from_a_directory(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    answer = await _post(http, "/update_weights", {"weight_dir": "/weights/step_7"})
    assert answer["weight_version"] == "1"
    assert (await http.get("/get_weight_version")).json() == {"weight_version": "1"}
    body = {"model_path": "/weights/step_8", "weight_version": "step-8", "abort_all_requests": True}
    assert (await _post(http, "/update_weights_from_disk", body))["success"] is True
    assert backend.control.asked == [
        ("update", "/weights/step_7", None),
        ("update", "/weights/step_8", "step-8"),
        ("abort", None),
    ]


async def test_weights_that_some_engine_cannot_load_are_told_of(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.control.refusal = WeightsError("no such directory")
    response = await http.post("/update_weights", json={"weight_dir": "/nowhere"})
    assert (response.status_code, response.json()["error"]["code"]) == (409, "weights_not_changed")
    response = await http.post("/update_weights_from_disk", json={"model_path": "/nowhere"})
    assert (response.status_code, response.json()) == (400, {"success": False, "message": "no such directory"})
    response = await http.post("/update_weights", json={"weight_dir": "/w", "update_info": {"names": []}})
    assert response.json()["error"]["param"] == "update_info"


async def test_the_stores_blocks_are_found_until_they_are_not_to_be(
    http: httpx.AsyncClient, backend: FakeBackend
) -> None:
    assert await _post(http, "/reset_prefix_cache") == {"success": True}
    assert not backend.control.asked
    assert await _post(http, "/reset_prefix_cache?reset_external=true") == {"success": True}
    assert (await http.get("/flush_cache")).status_code == 200
    assert (await http.post("/flush_cache")).status_code == 200
    assert backend.control.asked == ["flush"] * 3


async def test_sglangs_names(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    await _post(http, "/pause_generation")
    await _post(http, "/pause_generation", {"mode": "in_place"})
    await _post(http, "/pause_generation", {"mode": "retract"})
    await _post(http, "/continue_generation")
    assert backend.control.asked == [
        *(("pause", mode) for mode in (PauseMode.ABORT, PauseMode.KEEP, PauseMode.RETRACT)),
        "resume",
    ]
    assert (await http.get("/get_model_info")).json()["weight_version"] == "0"
    assert (await http.get("/health_generate")).status_code == 200


async def test_an_unknown_mode_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.post("/pause?mode=later")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "mode"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/abort_requests", {"request_ids": ["mine"]}),
        ("/inference/v1/abort_requests", {"request_ids": ["mine"]}),
        ("/abort_request", {"rid": "mine"}),
        ("/abort_request", {"abort_all": True, "rid": ""}),
        ("/abort_requests", {}),
    ],
    ids=["vllm", "inference", "sglang", "sglang-all", "vllm-all"],
)
async def test_an_aborted_request_gives_what_it_has(
    http: httpx.AsyncClient, backend: FakeBackend, path: str, body: dict[str, Any]
) -> None:
    running = asyncio.create_task(_post(http, "/inference/v1/generate", {"token_ids": [5], "request_id": "mine"}))
    backend.failure = (3, RequestAbortedError("aborted"))
    asked = asyncio.Event()
    backend.pause_s = 0.01

    def abort(request_ids: Collection[RequestId] | None) -> int:
        alive = [request.request_id for request in backend.requests]
        assert request_ids is None or set(request_ids) == set(alive)
        asked.set()
        return len(alive)

    backend.control.aborted = abort
    while not backend.requests:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await http.post(path, json=body)
    assert asked.is_set()
    choice = (await running)["choices"][0]
    assert choice["finish_reason"] == "abort"
    assert choice["token_ids"] == HELLO[:3]


async def test_every_api_says_that_a_request_was_aborted(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.failure = (3, RequestAbortedError("aborted"))
    whole = await _post(http, "/v1/completions", {"prompt": "Hi", "model": "fake"})
    assert whole["choices"][0]["finish_reason"] == "abort"
    assert whole["choices"][0]["text"] == "Hel"
    chat = await _post(http, "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})
    assert chat["choices"][0]["finish_reason"] == "abort"
    sglang = await _post(http, "/generate", {"text": "Hi"})
    assert sglang["meta_info"]["finish_reason"]["type"] == "abort"
    message = {"model": "fake", "max_tokens": 20, "messages": [{"role": "user", "content": "Hi"}]}
    assert (await http.post("/v1/messages", json=message)).status_code == 200


VERBS = [
    *("/pause", "/resume", "/abort_requests", "/pause_generation", "/continue_generation", "/abort_request"),
    *("/reset_prefix_cache", "/flush_cache"),
]


@pytest.mark.parametrize("path", VERBS)
async def test_what_changes_the_server_needs_an_admin_key(
    backend: FakeBackend, tokenizer: Tokenizer, path: str
) -> None:
    app = create_app(backend, tokenizer, GatewaySettings(api_keys=("user",), admin_keys=("admin",)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        for key, status in ((None, 401), ("user", 403), ("admin", 200)):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            assert (await client.post(path, headers=headers)).status_code == status
