"""Forms that answers must have: every grammar leads to what was asked for, read back as clients get it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from tests.gateway.answers import read
from tests.gateway.fakes import EOS_ID, FakeBackend, says
from tokenizers import AddedToken

from dualpath.gateway.app import create_app
from dualpath.gateway.openai.bodies import ChatBody
from dualpath.gateway.openai.constraint import chat_grammar
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.text import harmony
from dualpath.gateway.text.answer import AnswerFormat
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.models.init_tokenizer import byte_tokenizer

USER: list[Any] = [{"role": "user", "content": "hi"}]
PROPERTIES: dict[str, Any] = {
    "city": {"type": "string", "maxLength": 6, "pattern": "[a-z]*"},
    "days": {"type": "integer", "minimum": 0, "maximum": 99},
    "unit": {"enum": ["C", "F"]},
    "sure": {"type": "boolean"},
}
SCHEMA = {
    "type": "object",
    "properties": PROPERTIES,
    "required": ["city", "days", "unit"],
    "additionalProperties": False,
}
EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}},
    {"type": "function", "function": {"name": "now", "parameters": EMPTY}},
]
MARKS = (
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    *("<｜tool▁calls▁end｜>", *harmony.MARKUP, "｜DSML｜", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    *("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    *("<|tool_calls_section_end|>", "<minimax:tool_call>", "</minimax:tool_call>", "<seed:tool_call>", '<|"|>'),
    *("</seed:tool_call>", "<|tool_call>", "<tool_call|>", "<|tool_call|>", "<TOOLCALL>", "</TOOLCALL>"),
    *("<|channel>", "<channel|>"),
)
FORMS = [  # calls, reasoning, what the chat template has beside
    ("hermes", None, ""),
    ("hermes", "qwen3", ""),
    ("qwen3_coder", None, ""),
    ("llama3_json", None, ""),
    ("mistral", "mistral", ""),
    ("mistral", None, "[ARGS]"),
    ("deepseek_v3", "deepseek_r1", "```json"),
    ("deepseek_v3", None, ""),
    ("openai", "openai_gptoss", ""),
    ("deepseek_v32", "qwen3", ""),
    ("deepseek_v32", None, "tool_calls>"),
    ("kimi_k2", None, ""),
    ("glm45", "qwen3", ""),
    ("glm45", None, "</arg_key><arg_value>"),
    ("minimax_m2", "qwen3", ""),
    ("seed_oss", "seed_oss", ""),
    ("gemma4", "gemma4", ""),
    ("granite", None, ""),
    ("phi4_mini_json", None, ""),
    ("phi4_mini_json", None, "functools["),
    ("nemotron_json", None, ""),
    ("hunyuan_a13b", None, ""),
    ("pythonic", None, ""),
]


@cache
def tokenizer_of(template: str, marks_are_tokens: bool) -> Tokenizer:
    inner = byte_tokenizer(4096)
    if marks_are_tokens:
        inner.add_tokens([AddedToken(mark, special=i % 2 == 0, normalized=False) for i, mark in enumerate(MARKS)])
    inner.chat_template = template
    return Tokenizer(inner)


def drawn(tokenizer: Tokenizer, grammar: str, seed: int, max_tokens: int = 1500) -> str:
    """A text that the grammar allows: a token at random, again and again, ends rather than blanks."""
    state, dice, ids = tokenizer.grammars.state(grammar), random.Random(seed), []
    while len(ids) < max_tokens:
        bits = np.unpackbits(state.mask.view(np.uint8), bitorder="little")
        every = bits.nonzero()[0].tolist()
        allowed = ([i for i in every if i not in set(b" \n\r\t")] if dice.random() < 0.8 else every) or every
        token = EOS_ID if EOS_ID in allowed and dice.random() < 0.5 else dice.choice(allowed)
        if token == EOS_ID:
            return tokenizer.decode(ids, skip_special_tokens=False)
        ids.append(token)
        state.push(token)
        tokenizer.grammars.advance([state])
        assert state.error is None
    raise AssertionError("it never ends")


@pytest.mark.parametrize("marks_are_tokens", [False, True], ids=["text", "tokens"])
@pytest.mark.parametrize(("calls", "reasoning", "template"), FORMS, ids=lambda value: str(value) or "-")
def test_calls_that_must_come_are_read_back_in_every_form(
    calls: str, reasoning: str | None, template: str, marks_are_tokens: bool
) -> None:
    if calls == "openai" and not marks_are_tokens:
        return  # Harmony's marks are tokens
    tokenizer, form = tokenizer_of(template, marks_are_tokens), AnswerFormat(calls, reasoning)
    reading, seen = form.reading("", tools=TOOLS), set()
    for choice, names in (
        ("required", {"weather", "now"}),
        ({"type": "function", "function": {"name": "now"}}, {"now"}),
    ):
        body = ChatBody(messages=USER, tools=TOOLS, tool_choice=choice)  # type: ignore[arg-type]
        grammar = chat_grammar(body, TOOLS, form, tokenizer, "", holds_forms=True)
        for seed in range(6):
            # What a model thinks is not bounded by any grammar.
            text = drawn(tokenizer, _without_thoughts(grammar), seed)
            answer = read(reading.parser(), [text])
            assert answer.calls, text
            assert not answer.content.strip(), text
            for name, arguments in answer.calls:
                assert name in names
                jsonschema.validate(json.loads(arguments), SCHEMA if name == "weather" else EMPTY)
                seen.add(name)
            assert len(answer.calls) == 1 or choice == "required"
    assert seen == {"weather", "now"}


NESTED = {
    "type": "object",
    "properties": {
        "where": {"$ref": "#/$defs/Place"},
        "list": {"type": "array", "items": {"$ref": "#/$defs/Place"}, "maxItems": 2},
        "count": {"type": ["integer", "null"]},
        "any": {},
    },
    "additionalProperties": False,
    "$defs": {
        "Place": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "kind": {"enum": ["city", "sea"]}},
            "required": ["kind"],
            "additionalProperties": False,
        }
    },
}


@pytest.mark.parametrize("required", [[], ["where"], ["count", "list"]], ids=str)
@pytest.mark.parametrize("calls", ["gemma4", "pythonic", "deepseek_v32", "glm45"])
def test_arguments_in_each_other_are_held_in_forms_that_are_no_json(calls: str, required: list[str]) -> None:
    schema = {**NESTED, "required": required}
    tools: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    tokenizer, form = tokenizer_of("", False), AnswerFormat(calls, None)
    body = ChatBody(messages=USER, tools=tools, tool_choice="required")
    grammar = chat_grammar(body, tools, form, tokenizer, "", holds_forms=True)
    seen: set[str] = set()
    for seed in range(12):
        answer = read(
            form.reading("", tools=tools).parser(), [drawn(tokenizer, _without_thoughts(grammar), seed, 6000)]
        )
        for _, arguments in answer.calls:
            value = json.loads(arguments)
            value.get("list", [])[2:] = []  # how many there are is not held everywhere
            jsonschema.validate(value, schema)
            seen |= value.keys()
    assert len(seen) > 1


def _without_thoughts(grammar: str) -> str:
    """The same, with thoughts of a few letters: a walk at random would not come to the end of others."""
    return grammar.replace("/(?s:.*)/", "/[a-z]{0,3}/")


@pytest.mark.parametrize(("calls", "reasoning", "template"), FORMS, ids=lambda value: str(value) or "-")
@pytest.mark.parametrize("marks_are_tokens", [False, True], ids=["text", "tokens"])
def test_strict_tools_may_be_called_but_then_rightly(
    calls: str, reasoning: str | None, template: str, marks_are_tokens: bool
) -> None:
    if calls == "openai" and not marks_are_tokens:
        return
    tokenizer, form = tokenizer_of(template, marks_are_tokens), AnswerFormat(calls, reasoning)
    body = ChatBody(messages=USER, tools=TOOLS)
    grammar = chat_grammar(body, TOOLS, form, tokenizer, "", holds_forms=True)
    must = ChatBody(messages=USER, tools=TOOLS, tool_choice="required")
    forced = chat_grammar(must, TOOLS, form, tokenizer, "", holds_forms=True)
    call = drawn(tokenizer, _without_thoughts(forced), 3)
    says_final = "<|channel|>final<|message|>" if calls == "openai" else ""
    behind_thoughts = call.rpartition(form.tags[1])[2]
    for text in (
        f"{says_final}Hello there.",
        call,
        *([] if calls in ("openai", "llama3_json", "pythonic") else [f"Well. {behind_thoughts}"]),
    ):
        assert fits(tokenizer, grammar, text), text
    name = "weather" if "weather" in call else "now"
    assert not fits(tokenizer, grammar, call.replace(name, "wether"))


def fits(tokenizer: Tokenizer, grammar: str, text: str) -> bool:
    try:
        state = tokenizer.grammars.state(grammar, tokenizer.encode(text, add_special_tokens=False))
    except Exception:
        return False
    return bool(state.matcher.is_accepting())


THOUGHT = [
    ("", "<think>so</think>\n\n{}", True),
    ("", "{}", True),
    ("", "so</think>{}", False),
    ("<think>\n", "so</think>\n\n{}", True),
    ("<think>\n", "{}", False),
    ("<think>\n\n</think>\n\n", "{}", True),
    ("<think>\n\n</think>\n\n", "<think>so</think>{}", False),
]


@pytest.mark.parametrize("marks_are_tokens", [False, True], ids=["text", "tokens"])
@pytest.mark.parametrize(("prompt", "text", "right"), THOUGHT)
def test_reasoning_comes_before_what_is_constrained(
    prompt: str, text: str, right: bool, marks_are_tokens: bool
) -> None:
    tokenizer = tokenizer_of("", marks_are_tokens)
    body = ChatBody(messages=USER, response_format={"type": "json_object"})
    grammar = chat_grammar(body, [], AnswerFormat("hermes", "qwen3"), tokenizer, prompt, holds_forms=True)
    assert fits(tokenizer, grammar, text) is right


@pytest.mark.parametrize("marks_are_tokens", [False, True], ids=["text", "tokens"])
def test_a_tag_with_words_behind_its_token_begins_reasoning(marks_are_tokens: bool) -> None:
    tokenizer, form = tokenizer_of("", marks_are_tokens), AnswerFormat("gemma4", "gemma4")
    body = ChatBody(messages=USER, response_format={"type": "json_object"})
    free, opened = (
        chat_grammar(body, [], form, tokenizer, prompt, holds_forms=True) for prompt in ("", "<|channel>thought\n")
    )
    assert fits(tokenizer, free, "<|channel>thought\nso\n<channel|>{}")
    assert fits(tokenizer, free, "{}")
    assert fits(tokenizer, opened, "so\n<channel|>{}")
    assert not fits(tokenizer, opened, "{}")


def test_a_last_message_of_harmony_is_constrained_and_thoughts_are_not() -> None:
    tokenizer = tokenizer_of("", True)
    body = ChatBody(messages=USER, response_format={"type": "json_object"})
    grammar = chat_grammar(body, [], AnswerFormat("openai", "openai_gptoss"), tokenizer, "", holds_forms=True)
    thought = "<|channel|>analysis<|message|>Hm {<|end|><|start|>assistant"
    assert fits(tokenizer, grammar, thought + '<|channel|>final <|constrain|>json<|message|>{"a": 1}')
    assert fits(tokenizer, grammar, "<|channel|>final<|message|>{}")
    assert not fits(tokenizer, grammar, thought + "<|channel|>final<|message|>Hello")


ASKED: list[tuple[dict[str, Any], str, str]] = [  # fields, what fits, what does not
    ({"response_format": {"type": "json_object"}}, '{"a": [1]}', "[1]"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": EMPTY}}}, "{}", '{"a": 1}'),
    ({"structured_outputs": {"json": {"type": "integer"}}}, "12", '"12"'),
    ({"structured_outputs": {"json": '{"type": "integer"}'}}, "12", "a"),
    ({"structured_outputs": {"json_object": True}}, "{}", "x"),
    ({"structured_outputs": {"regex": "^a+/b$"}}, "aa/b", "aa/bb"),
    ({"structured_outputs": {"choice": ["yes", "no", 'a "b"\n']}}, 'a "b"\n', "y"),
    ({"structured_outputs": {"grammar": 'root ::= "a" num\nnum ::= [0-9]+'}}, "a12", "a"),
    ({"structured_outputs": {"grammar": '?start: sum\nsum: NUM ("+" NUM)*\nNUM: /[0-9]+/'}}, "1+2", "1+"),
    ({"guided_json": {"type": "boolean"}}, "true", "1"),
    ({"guided_regex": "[ab]"}, "a", "c"),
    ({"guided_choice": ["yes"]}, "yes", "no"),
    ({"guided_grammar": 'start: "x"'}, "x", "y"),
    ({"regex": "[ab]"}, "b", "bb"),
    ({"ebnf": 'root ::= "x" | "y"'}, "y", "z"),
    ({"json_schema": '{"type": "null"}'}, "null", "0"),
]


@pytest.mark.parametrize(("fields", "right", "wrong"), ASKED, ids=lambda value: json.dumps(value)[:50])
async def test_every_spelling_reaches_the_engine(
    http: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer, fields: Any, right: str, wrong: str
) -> None:
    for path, prompt in (("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": USER})):
        answer = await http.post(path, json={**prompt, **fields})
        assert answer.status_code == 200, answer.text
        grammar = backend.requests[-1].sampling.grammar
        assert fits(tokenizer, grammar, right)
        assert not fits(tokenizer, grammar, wrong)


LOOK = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}


def tool(schema: Any, **more: Any) -> Any:
    return {"type": "function", "function": {"name": "f", "parameters": schema, **more}}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": LOOK, "strict": True}}}, "response_format"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"structured_outputs": {"grammar": "nonsense"}}, "structured_outputs.grammar"),
    ({"structured_outputs": {"grammar": "root ::= ("}}, "structured_outputs.grammar"),
    ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": 3}, "structured_outputs"),
    ({"guided_json": {"$ref": "#/nowhere"}}, "guided_json"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tools": [tool({"type": "x"}, strict=True)]}, "tools[0].function.parameters"),
    ({"tools": [tool(LOOK, strict=True)]}, "tools[0].function.parameters"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: json.dumps(value)[:60])
async def test_what_is_no_grammar_is_refused_by_its_field(
    http: httpx.AsyncClient, backend: FakeBackend, fields: Any, param: str
) -> None:
    answer = await http.post("/v1/chat/completions", json={"messages": USER, **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert "\n" not in error["message"]
    assert not backend.requests


async def test_what_cannot_be_held_is_left_out_where_nobody_insists(
    http: httpx.AsyncClient, backend: FakeBackend
) -> None:
    for fields in (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": LOOK}}},
        {"tools": [tool(LOOK)], "tool_choice": "required"},
        {"tools": [tool({"type": "x"})], "tool_choice": "required"},
    ):
        answer = await http.post("/v1/chat/completions", json={"messages": USER, **fields})
        assert answer.status_code == 200, answer.text
        assert backend.requests[-1].sampling.grammar


async def test_engines_that_hold_no_forms_refuse_what_needs_one(backend: FakeBackend, tokenizer: Tokenizer) -> None:
    """Strict tools do not: most agents send them so."""
    transport = httpx.ASGITransport(create_app(backend, tokenizer, GatewaySettings(holds_forms=False)))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        for fields, param in (
            ({"tools": TOOLS}, None),
            ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
            ({"response_format": {"type": "json_object"}}, "response_format"),
        ):
            answer = await http.post("/v1/chat/completions", json={"messages": USER, **fields})
            assert answer.status_code == (400 if param else 200)
            assert not param or answer.json()["error"]["param"] == param
        answer = await http.post("/v1/completions", json={"prompt": "x", "guided_regex": "a"})
        assert answer.json()["error"]["param"] == "guided_regex"
    assert [request.sampling.grammar for request in backend.requests] == [""]


class Weather(BaseModel):
    city: str
    days: list[int]


async def test_the_official_client_parses_what_it_asked_for(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = says('{"city": "Paris", "days": [1, 2]}')
    answer = await openai.chat.completions.parse(model="fake", messages=USER, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(city="Paris", days=[1, 2])
    assert "days" in backend.requests[-1].sampling.grammar


async def test_tools_without_a_need_for_it_bring_no_grammar(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    for fields in (
        {"tools": [tool(LOOK)]},
        {"tools": TOOLS, "tool_choice": "none"},
        {"response_format": {"type": "text"}},
    ):
        assert (await http.post("/v1/chat/completions", json={"messages": USER, **fields})).status_code == 200
        assert backend.requests[-1].sampling.grammar == ""


SHAPES: list[tuple[dict[str, Any], Sequence[Any]]] = [
    ({"logit_bias": {"5": 3, "7": -100}}, ((5, 3.0), (7, -100.0))),
    ({"bad_words": ["ab", " c"]}, ((97, 98), (99,))),
    ({"allowed_token_ids": [1, 2]}, (1, 2)),
    ({"presence_penalty": 0.5}, 0.5),
    ({"frequency_penalty": -2}, -2),
    ({"repetition_penalty": 1.2}, 1.2),
    ({"min_tokens": 3}, 3),
]  # type: ignore[list-item]


@pytest.mark.parametrize(("fields", "value"), SHAPES, ids=lambda value: str(value))
async def test_shapes_reach_the_engine(http: httpx.AsyncClient, backend: FakeBackend, fields: Any, value: Any) -> None:
    assert (await http.post("/v1/completions", json={"prompt": "x", **fields})).status_code == 200
    (name,) = fields
    assert getattr(backend.requests[-1].sampling, name) == value


async def test_stop_strings_count_from_the_tokens_that_must_come(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = says("axbxc")
    for min_tokens, text in ((0, "a"), (1, "a"), (2, "axb"), (4, "axbxc")):
        body = {"prompt": "p", "stop": ["x"], "min_tokens": min_tokens}
        answer = await http.post("/v1/completions", json=body)
        assert answer.json()["choices"][0]["text"] == text


async def test_every_door_asks_by_its_own_name(
    http: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer
) -> None:
    backend.script = says("{}")
    form = {"type": "json_schema", "name": "x", "schema": EMPTY, "strict": True}
    answer = await http.post("/v1/responses", json={"input": "hi", "text": {"format": form}})
    assert answer.status_code == 200, answer.text
    assert fits(tokenizer, backend.requests[-1].sampling.grammar, "{}")
    asked = {"messages": USER, "max_tokens": 9, "tools": [{"name": "now", "input_schema": EMPTY}]}
    answer = await http.post("/v1/messages", json={**asked, "tool_choice": {"type": "any"}})
    assert answer.status_code == 200, answer.text
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert fits(tokenizer, backend.requests[-1].sampling.grammar, call)
    wrong = {**form, "schema": {"type": "nothing"}}
    answer = await http.post("/v1/responses", json={"input": "hi", "text": {"format": wrong}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "text.format")
