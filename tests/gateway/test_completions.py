"""/v1/completions through the official client: every shape of prompt and answer."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI
from tests.gateway.fakes import EOS_ID, FakeBackend, says

from dualpath.core.errors import ConfigError, RequestAbortedError
from dualpath.gateway.app import create_app
from dualpath.gateway.defaults import SamplingDefaults, read_defaults
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.text.tokenizer import Tokenizer


async def test_one_answer(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.num_hit_tokens = 2
    answer = await openai.completions.create(model="fake", prompt="abc")
    assert (answer.object, answer.model) == ("text_completion", "fake")
    assert answer.id.startswith("cmpl-")
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == ("Hello", "stop", None)
    assert choice.stop_reason is None  # type: ignore[attr-defined]
    usage = answer.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 6, 9)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 2
    (request,) = backend.requests
    assert request.prompt_token_ids == (97, 98, 99)
    assert (request.sampling.max_tokens, request.sampling.temperature, request.sampling.seed) == (16, 1.0, None)
    assert backend.outcomes() == ["finished"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [(97, 98)]),
        (["ab", "c"], [(97, 98), (99,)]),
        ([1, 2, 3], [(1, 2, 3)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
async def test_prompts(openai: AsyncOpenAI, backend: FakeBackend, prompt: object, expected: object) -> None:
    answer = await openai.completions.create(model="fake", prompt=prompt)  # type: ignore[call-overload]
    assert [request.prompt_token_ids for request in backend.requests] == expected
    assert [choice.index for choice in answer.choices] == list(range(len(backend.requests)))


async def test_several_choices_draw_from_seeds_of_their_own(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = lambda request: [65 + (request.sampling.seed or 0) % 10, EOS_ID]
    answer = await openai.completions.create(model="fake", prompt=["x", "yz"], n=2, seed=3)
    assert [choice.text for choice in answer.choices] == ["D", "E", "D", "E"]
    assert len({request.request_id for request in backend.requests}) == 4
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 8)


async def test_parameters_reach_the_engine(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    await openai.completions.create(
        model="fake",
        prompt="x",
        max_tokens=3,
        temperature=0,
        top_p=0.5,
        seed=7,
        presence_penalty=0,
        user="me",
        extra_body={"top_k": -1, "stop_token_ids": [5], "ignore_eos": True, "cache_salt": "s", "unheard_of": 1},
    )
    (request,) = backend.requests
    sampling = request.sampling
    assert request.cache_salt == "s"
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (3, 0.0, 0.5, 0)
    assert (sampling.seed, sampling.stop_token_ids, sampling.ignore_eos) == (7, (5,), True)


async def test_a_temperature_too_small_to_divide_by_is_greedy(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    for temperature, expected in ((1e-310, 0.0), (9e-6, 0.0), (1e-4, 1e-4)):
        await openai.completions.create(model="fake", prompt="x", temperature=temperature)
        assert backend.requests[-1].sampling.temperature == expected


async def test_the_model_s_recommendations_hold_where_a_request_says_nothing(
    backend: FakeBackend, tokenizer: Tokenizer
) -> None:
    app = create_app(backend, tokenizer, GatewaySettings(sampling=SamplingDefaults(0.6, 0.95, 20)))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        for said in ({}, {"temperature": 1, "top_p": 1, "top_k": 0}, {"top_k": -1}):
            await client.post("/v1/completions", json={"prompt": "x", **said})
    drawn = [(one.sampling.temperature, one.sampling.top_p, one.sampling.top_k) for one in backend.requests]
    assert drawn == [(0.6, 0.95, 20), (1.0, 1.0, 0), (0.6, 0.95, 0)]


def test_the_model_s_recommendations_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    file = tmp_path / "generation_config.json"
    assert read_defaults(tmp_path) == SamplingDefaults()
    file.write_text('{"do_sample": true, "temperature": 0.6, "top_p": null, "top_k": 20, "repetition_penalty": 1.05}')
    assert read_defaults(tmp_path) == SamplingDefaults(0.6, 1.0, 20, repetition_penalty=1.05)
    assert "repetition_penalty=1.05" in caplog.text
    for content, reason in (('{"temperature": "hot"}', "temperature must be a number"), ("[", "cannot read")):
        file.write_text(content)
        with pytest.raises(ConfigError, match=reason):
            read_defaults(tmp_path)


async def test_length_and_echo(openai: AsyncOpenAI) -> None:
    answer = await openai.completions.create(model="fake", prompt="abc ", max_tokens=2, echo=True)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("abc He", "length")
    answer = await openai.completions.create(model="fake", prompt=[97, 98], max_tokens=2, echo=True)
    assert answer.choices[0].text == "abHe"


async def test_stream(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = says("hé😀")
    stream = await openai.completions.create(
        model="fake", prompt="p", echo=True, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].text for chunk in chunks[:-1]] == ["ph", "é", "😀", ""]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (1, 8)
    assert backend.outcomes() == ["finished"]


async def test_usage_in_every_chunk_of_a_stream(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.num_hit_tokens = 1
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = await openai.completions.create(
        model="fake", prompt="ab", stream=True, extra_body={"stream_options": options}
    )
    usages = [chunk.usage async for chunk in stream]
    assert [usage and usage.completion_tokens for usage in usages] == [1, 2, 3, 4, 5, 6, 6]
    assert all(usage and usage.prompt_tokens_details for usage in usages)


async def test_stream_of_several_choices(openai: AsyncOpenAI) -> None:
    texts = {0: "", 1: "", 2: ""}
    async for chunk in await openai.completions.create(model="fake", prompt="p", n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {0: "Hello", 1: "Hello", 2: "Hello"}


async def test_raw_stream_is_server_sent_events(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/completions", json={"prompt": "p", "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert all(line.startswith("data: ") for line in lines[:-1])
    assert lines[-2:] == ["data: [DONE]", ""]
    assert '"usage"' not in answer.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("include", "expected"), [(False, "one "), (True, "one STOP")])
async def test_stop_strings(
    openai: AsyncOpenAI, backend: FakeBackend, stream: bool, include: bool, expected: str
) -> None:
    backend.script = says("one STOP two")
    arguments = {"model": "fake", "prompt": "p", "stop": ["xx", "STOP"]}
    extra = {"include_stop_str_in_output": include}
    if stream:
        chunks = [c async for c in await openai.completions.create(**arguments, stream=True, extra_body=extra)]
        text, last = "".join(chunk.choices[0].text for chunk in chunks), chunks[-1].choices[0]
    else:
        last = (await openai.completions.create(**arguments, extra_body=extra)).choices[0]
        text = last.text
    assert text == expected
    assert (last.finish_reason, last.stop_reason) == ("stop", "STOP")
    assert backend.outcomes() == ["cancelled"]  # the cluster works on nothing that is not shown


async def test_the_backend_s_iterator_is_closed_before_the_answer_ends(
    openai: AsyncOpenAI, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the collector finds it: until then the engines would go on."""
    kept = []
    generate = backend.generate
    monkeypatch.setattr(backend, "generate", lambda request: kept.append(generate(request)) or kept[-1])
    backend.script = says("one STOP two")
    answer = await openai.completions.create(model="fake", prompt="x", stop="STOP", max_tokens=50)
    assert answer.choices[0].text == "one "
    assert not backend.open_iterators


async def test_a_stop_string_that_does_not_come_true_is_shown(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = says("one STO")
    answer = await openai.completions.create(model="fake", prompt="p", stop="STOP")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("one STO", "stop")


async def test_stop_tokens_are_named_and_not_shown(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = says("abc")
    answer = await openai.completions.create(model="fake", prompt="p", extra_body={"stop_token_ids": [98]})
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.stop_reason) == ("a", "stop", 98)  # type: ignore[attr-defined]


async def test_logprobs(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = says("ab", ends=False)
    answer = await openai.completions.create(model="fake", prompt="p", logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == (["a", "b"], [-0.5, -0.5], [0, 1])
    assert logprobs.top_logprobs == [{"a": -0.5, "b": -1.5}, {"b": -0.5, "c": -1.5}]
    stream = await openai.completions.create(model="fake", prompt="p", logprobs=0, stream=True)
    parts = [chunk.choices[0].logprobs async for chunk in stream]
    assert [(part.tokens, part.text_offset, part.top_logprobs) for part in parts if part] == [
        (["a"], [0], [{"a": -0.5}]),
        (["b"], [1], [{"b": -0.5}]),
    ]


async def test_token_ids(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = says("é")
    extra = {"return_token_ids": True}
    answer = await openai.completions.create(model="fake", prompt="p", extra_body=extra)
    (choice,) = answer.choices
    assert choice.prompt_token_ids == [112]  # type: ignore[attr-defined]
    assert choice.token_ids == [0xC3, 0xA9, EOS_ID]  # type: ignore[attr-defined]
    stream = await openai.completions.create(model="fake", prompt="p", stream=True, extra_body=extra)
    parts = [chunk.choices[0].model_dump() async for chunk in stream]
    assert [(part["text"], part["token_ids"]) for part in parts] == [("é", [0xC3, 0xA9]), ("", [EOS_ID])]
    assert [part.get("prompt_token_ids") for part in parts] == [[112], None]


@pytest.mark.parametrize("left", [4, 1])
async def test_the_default_length_gives_way_to_the_context(
    openai: AsyncOpenAI, backend: FakeBackend, left: int
) -> None:
    await openai.completions.create(model="fake", prompt=[1] * (1024 - left))
    assert backend.requests[0].sampling.max_tokens == left


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
async def test_an_echo_comes_with_the_log_probabilities_of_the_prompt(
    openai: AsyncOpenAI, backend: FakeBackend, max_tokens: int
) -> None:
    """As evaluation harnesses ask for likelihoods: the first token has none, and each other's is under its token."""
    answer = await openai.completions.create(
        model="fake", prompt=[[97, 98, 99], [100]], max_tokens=max_tokens, logprobs=1, echo=True, seed=1
    )
    for choice, prompt in zip(answer.choices, ("abc", "d"), strict=True):
        told = choice.logprobs
        assert choice.text == prompt + "Hello"[:max_tokens]
        assert told is not None
        assert told.tokens == [*choice.text]
        assert told.text_offset == list(range(len(choice.text)))
        num = len(prompt)
        assert told.token_logprobs is not None
        assert told.top_logprobs is not None
        assert told.token_logprobs[:num] == [None, -1.0, -2.0][:num]
        assert told.token_logprobs[num:] == [-0.5] * max_tokens
        assert told.top_logprobs[0] is None
        assert all(chosen in top for chosen, top in zip(told.tokens[1:], told.top_logprobs[1:], strict=True))
        assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 2 * max_tokens)
    assert {request.sampling.num_prompt_logprobs for request in backend.requests} == {1}


async def test_an_echo_is_streamed_once_with_its_log_probabilities(openai: AsyncOpenAI) -> None:
    stream = await openai.completions.create(
        model="fake", prompt="ab", max_tokens=2, logprobs=0, echo=True, stream=True, seed=1
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "abHe"
    told = [value for chunk in chunks if (own := chunk.choices[0].logprobs) for value in own.token_logprobs or []]
    assert told == [None, -1.0, -0.5, -0.5]


async def test_log_probabilities_of_the_prompt_in_vllms_shape(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    """Of each of the prompt's tokens but the first: itself, and as many of the most likely as were asked for."""
    body = {"model": "fake", "prompt": [[97, 1], [98, 50, 0]], "max_tokens": 1, "prompt_logprobs": 2}
    two = (await http.post("/v1/completions", json=body)).json()["choices"]
    top = {str(i): {"logprob": -0.5, "rank": i + 1, "decoded_token": chr(i)} for i in range(2)}
    own = {"logprob": -1.0, "rank": 40, "decoded_token": "2"}
    assert [choice["prompt_logprobs"] for choice in two] == [
        [None, {"1": top["1"], "0": top["0"]}],
        [None, {"50": own, **top}, {"0": top["0"], "1": top["1"]}],
    ]
    assert [*two[1]["prompt_logprobs"][1]] == ["50", "0", "1"]
    assert {request.sampling.num_prompt_logprobs for request in backend.requests} == {2}
    assert {request.sampling.num_logprobs for request in backend.requests} == {None}
    assert all(choice["logprobs"] is None for choice in two)


async def test_an_echo_and_prompt_logprobs_get_each_what_they_ask_for(http: httpx.AsyncClient) -> None:
    body = {"model": "fake", "prompt": [97, 98], "max_tokens": 0, "echo": True, "logprobs": 3, "prompt_logprobs": 0}
    (choice,) = (await http.post("/v1/completions", json=body)).json()["choices"]
    assert choice["prompt_logprobs"] == [None, {"98": {"logprob": -1.0, "rank": 40, "decoded_token": "b"}}]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0]
    assert len(choice["logprobs"]["top_logprobs"][1]) == 4


async def test_where_nothing_was_computed_before_an_abort_nothing_is_known_of_the_prompt(
    http: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.failure = (0, RequestAbortedError("aborted"))
    body = {"model": "fake", "prompt": "ab", "echo": True, "logprobs": 1, "prompt_logprobs": 1}
    answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    assert (choice["finish_reason"], choice["text"], choice["logprobs"]) == ("abort", "ab", None)
    assert choice["prompt_logprobs"] == []
