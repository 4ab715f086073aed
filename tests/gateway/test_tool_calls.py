"""Tool calls of every model family are found in any cutting of the text, and their markup is never content."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.gateway.answers import Answer, cuts, parser, read

from dualpath.gateway.text import reader
from dualpath.gateway.text.answer import AnswerFormat
from dualpath.gateway.text.pieces import CallDelta

ARGUMENTS = '{"city": "Pa}ris \\"</tool_call>", "days": [1, {"a": 2}]}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
XML = "<tool_call>\n<function=f>\n{}</function>\n</tool_call>"
V3 = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"
V3_CALL = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```<｜tool▁call▁end｜>"
V31_CALL = "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
DSML = '<｜DSML｜{kind}>\n<｜DSML｜invoke name="f">\n{}</｜DSML｜invoke>\n</｜DSML｜{kind}>'
DSML_PARAMETER = '<｜DSML｜parameter name="{}" string="{}">{}</｜DSML｜parameter>\n'
MINIMAX = '<minimax:tool_call>\n<invoke name="f">\n{}</invoke>\n<invoke name="other">\n</invoke>\n</minimax:tool_call>'
KIMI = "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>"
KIMI_CALL = "<|tool_call_begin|>functions.{}<|tool_call_argument_begin|>{}<|tool_call_end|>"
GLM = "<tool_call>f\n{}</tool_call>"
GLM_PARAMETER = "<arg_key>{}</arg_key>\n<arg_value>{}</arg_value>\n"
SEED = "<seed:tool_call>\n<function=f>\n{}</function>\n</seed:tool_call>"
GEMMA = "<|tool_call>call:f{}<tool_call|>"
HARMONY_CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"


def both(text: str, family: str = "hermes", max_calls: int | None = None) -> Answer:
    """As it is read whole and one character at a time."""
    whole = read(parser(family, max_calls=max_calls), [text])
    assert read(parser(family, max_calls=max_calls), list(text)) == whole
    return whole


@pytest.mark.parametrize("length", [1, 2, 7, 1000])
def test_calls_between_content(length: int) -> None:
    other = '<tool_call>{"arguments": {"x": 1}, "name": "other"}</tool_call>'
    answer = read(parser(), cuts(f"I will look. a < b\n{CALL}\n{other}\n", length))
    assert answer.content == "I will look. a < b"
    assert answer.calls == [("weather", ARGUMENTS), ("other", '{"x": 1}')]
    assert json.loads(ARGUMENTS)["days"][1] == {"a": 2}


FAMILIES: list[tuple[str, str, str, list[tuple[str, str]]]] = [  # (family, text, content, calls)
    ("hermes", XML.format("<parameter=city>\nOslo\n</parameter>\n"), "", [("f", '{"city": "Oslo"}')]),
    ("qwen3_coder", "a\n<function=f>\n</function>\nb", "a\nb", [("f", "{}")]),
    ("llama3_json", '{"name": "f", "parameters": {"a": "}"}}', "", [("f", '{"a": "}"}')]),
    ("llama3_json", '<|python_tag|>{"name": "new", "parameters": {}}', "", [("new", "{}")]),
    (
        "llama3_json",
        ' {"name": "f", "parameters": {}}; {"name": "other", "parameters": {"a": 1}}',
        "",
        [("f", "{}"), ("other", '{"a": 1}')],
    ),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "x"}]', "", [("f", '{"a": 1}')]),
    ("mistral", 'So\n[TOOL_CALLS][{"name":"f"},{"name":"g","arguments":{}}]', "So", [("f", "{}"), ("g", "{}")]),
    ("mistral", '[TOOL_CALLS]f{"a": "[TOOL_CALLS]"}[TOOL_CALLS]g{}', "", [("f", '{"a": "[TOOL_CALLS]"}'), ("g", "{}")]),
    ("mistral", '[TOOL_CALLS]f[CALL_ID]a1[ARGS]{"a": 1}', "", [("f", '{"a": 1}')]),
    (
        "deepseek_v3",
        "On it." + V3.format(V3_CALL.format('{"a": "```"}') + "\n" + V3_CALL.format("{}")),
        "On it.",
        [("f", '{"a": "```"}'), ("f", "{}")],
    ),
    (
        "deepseek_v3",
        V3.format(V31_CALL.format('{"a": 1}') + V31_CALL.format("{}")),
        "",
        [("f", '{"a": 1}'), ("f", "{}")],
    ),
    ("deepseek_v3", V31_CALL.format("null") + " x", " x", [("f", "{}")]),
    ("openai", HARMONY_CALL + '{"a": "x"}<|call|>', "", [("f", '{"a": "x"}')]),
    ("openai", HARMONY_CALL + "null", "", [("f", "{}")]),
    ("openai", "<|start|>assistant to=functions.f<|channel|>commentary<|message|><|call|>", "", [("f", "{}")]),
    (
        "openai",
        f"{HARMONY_CALL}{{}}<|call|><|start|>assistant{HARMONY_CALL}{{}}<|call|>",
        "",
        [("f", "{}"), ("f", "{}")],
    ),
    (
        "deepseek_v32",
        "So.\n\n"
        + DSML.format(
            DSML_PARAMETER.format("city", "true", '12 "a"\n')
            + DSML_PARAMETER.format("deep", "false", '{"a": [1, null]}'),
            kind="function_calls",
        ),
        "So.\n",
        [("f", '{"city": "12 \\"a\\"\\n", "deep": {"a": [1, null]}}')],
    ),
    ("deepseek_v32", DSML.format("", kind="tool_calls"), "", [("f", "{}")]),
    # What the attribute says is no string is one nevertheless where it is no JSON.
    (
        "deepseek_v32",
        DSML.format(DSML_PARAMETER.format("days", "false", "x y"), kind="tool_calls"),
        "",
        [("f", '{"days": "x y"}')],
    ),
    (
        "minimax_m2",
        "So.\n" + MINIMAX.format('<parameter name="city">a\n"b"\n</parameter>\n<parameter name="days">3</parameter>\n'),
        "So.",
        [("f", '{"city": "a\\n\\"b\\"\\n", "days": 3}'), ("other", "{}")],
    ),
    (
        "kimi_k2",
        "So." + KIMI.format(KIMI_CALL.format("f:0", '{"a": "<|tool_call_end|>"}') + KIMI_CALL.format("other:1", "{}")),
        "So.",
        [("f", '{"a": "<|tool_call_end|>"}'), ("other", "{}")],
    ),
    ("kimi_k2", KIMI_CALL.format("f", "{}") + "x", "x", [("f", "{}")]),
    (
        "glm45",
        "So.\n" + GLM.format(GLM_PARAMETER.format("city", "a\nb ") + GLM_PARAMETER.format("sure", "true")),
        "So.",
        [("f", '{"city": "a\\nb ", "sure": true}')],
    ),
    (
        "glm45",
        "<tool_call>f<arg_key>days</arg_key><arg_value>2</arg_value></tool_call><tool_call>other</tool_call>",
        "",
        [("f", '{"days": 2}'), ("other", "{}")],
    ),
    (
        "seed_oss",
        SEED.format("<parameter=city>\na\n</parameter>\n<parameter=deep>{'a': None}</parameter>\n"),
        "",
        [("f", '{"city": "\\na\\n", "deep": {"a": null}}')],
    ),
    (
        "gemma4",
        "So." + GEMMA.format('{city:<|"|>a "b"\n}<|"|>,days:2,sure:true,deep:{x:[1,<|"|>y<|"|>,null],z:{}}}'),
        "So.",
        [("f", '{"city": "a \\"b\\"\\n}", "days": 2, "sure": true, "deep": {"x": [1, "y", null], "z": {}}}')],
    ),
    ("gemma4", GEMMA.format("{}") + GEMMA.format('{"a": "b", c: d}'), "", [("f", "{}"), ("f", '{"a": "b", "c": "d"}')]),
    (
        "granite",
        '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}, {"name": "other", "arguments": {}}]',
        "",
        [("f", '{"a": 1}'), ("other", "{}")],
    ),
    ("granite", '<tool_call>[{"name": "f"}]</tool_call>', "", [("f", "{}")]),
    ("phi4_mini_json", 'So. functools[{"name": "f", "arguments": {"a": 1}}]', "So. ", [("f", '{"a": 1}')]),
    ("phi4_mini_json", '<|tool_call|>[{"name": "f"}]<|/tool_call|>', "", [("f", "{}")]),
    (
        "hunyuan_a13b",
        'So.\n<tool_calls>\n{"name": "f", "arguments": {"a": 1}}\n{"name": "g"}\n</tool_calls>\n',
        "So.",
        [("f", '{"a": 1}'), ("g", "{}")],
    ),
    ("nemotron_json", '<TOOLCALL>[{"name": "f"}, {"name": "g"}]</TOOLCALL>', "", [("f", "{}"), ("g", "{}")]),
    (
        "pythonic",
        "[f(city='it\\'s ]', deep=[1, {'a': None}], sure=true), other()]",
        "",
        [("f", '{"city": "it\'s ]", "deep": [1, {"a": null}], "sure": true}'), ("other", "{}")],
    ),
    ("pythonic", "So.<|python_start|>[ns.g(days=-1)]<|python_end|>", "So.", [("ns.g", '{"days": -1}')]),
    (
        "pythonic",
        '<function_calls>\nf(city="x")\nother()\n</function_calls>',
        "",
        [("f", '{"city": "x"}'), ("other", "{}")],
    ),
]


@pytest.mark.parametrize(("family", "text", "content", "calls"), FAMILIES, ids=range(len(FAMILIES)))
def test_each_family_writes_calls_its_own_way(
    family: str, text: str, content: str, calls: list[tuple[str, str]]
) -> None:
    assert both(text, family) == Answer(content, "", calls, len(calls))


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("hermes", "<tool_call>\nnot json\n</tool_call> x"),
        ("hermes", '<tool_call>{"nam'),
        ("hermes", "a\n<tool"),
        ("hermes", "a <tool_calls>"),
        ("hermes", '<tool_call>{"a": 1}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": '),
        ("hermes", '<tool_call>{"name": "f"'),
        ("hermes", '<tool_call>{"name": "", "arguments": {}}'),
        ("hermes", "<tool_call><function=f><parameter=a>x"),
        ("hermes", "the tag <function=f> is"),
        ("llama3_json", '{"name": "Bob", "parameters": {}}'),
        ("llama3_json", '{"name": "f"}'),
        ("llama3_json", '{"answer": {"name": "f", "parameters": {}}}'),
        ("llama3_json", 'such as {"name": "f", "parameters": {}}'),
        ("llama3_json", '<|python_tag|>f.call(query="x")'),
        ("mistral", "[TOOL_CALLS] none"),
        ("mistral", '[TOOL_CALLS]{"a": 1}'),
        ("deepseek_v3", "<｜tool▁calls▁begin｜>none<｜tool▁calls▁end｜>"),
        ("deepseek_v3", "<｜tool▁call▁begin｜>f\n<｜tool▁sep｜>"),
        ("deepseek_v32", '<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="city" string="true">x'),
        ("minimax_m2", 'the tag <invoke name="f"> is'),
        ("minimax_m2", '<invoke name="nobody">\n</invoke>'),
        ("qwen3_coder", "<function=nobody>\n</function>"),
        ("kimi_k2", "<|tool_calls_section_begin|>none<|tool_calls_section_end|>"),
        ("kimi_k2", "<|tool_call_begin|>f\n<|tool_call_argument_begin|>{}"),
        ("glm45", "<tool_call>a tag</tool_call>"),
        ("glm45", "<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>x"),
        ("gemma4", "<|tool_call>call:f{a:1"),
        ("gemma4", "<|tool_call>f{a:1}<tool_call|>"),
        ("gemma4", "<|tool_call>call:f" + "{a:" * 99 + "1" + "}" * 99 + "<tool_call|>"),
        ("granite", "<|tool_call|>none"),
        ("phi4_mini_json", "the module functools is functools[0]"),
        ("pythonic", "[1, 2]"),
        ("pythonic", "[f(1)]"),
        ("pythonic", "[f(city=open('x'))]"),
        ("pythonic", "[nobody(city=1)]"),
        ("pythonic", "[f(city='x'"),
        ("pythonic", "as in [f(city='x')]"),
        ("pythonic", "<|python_start|>(lambda: 0)()<|python_end|>"),
        ("openai", "no channel at all\n"),
        ("openai", "<|channel|>final"),
    ],
)
def test_what_is_no_call_is_content(family: str, text: str) -> None:
    assert both(text, family) == Answer(text, "", [], 0)


LONG_NAME = "f" * 3000
ODD_CALLS = [  # (text, content, calls)
    (f'<tool_call>{{"name": "{LONG_NAME}", "arguments": {{"a": 1}}}}</tool_call>', "", [(LONG_NAME, '{"a": 1}')]),
    (f'<tool_call>{" " * 3000}{{"name": "f", "arguments": {{}}}}</tool_call>!', "!", [("f", "{}")]),
    ('<tool_call>{"name": "a\\x", "arguments": {}}</tool_call>', None, []),
    ('<tool_call>{"name": "a\\u12", "arguments": {}}', None, []),
    ('<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>', "", [("?", "{}")]),
    ('<tool_call>{"arguments": {"a": 1.0}, "name": "f"}</tool_call>', "", [("f", '{"a": 1.0}')]),
    ('<tool_call>{"id": [1], "arguments": {}, "name": "f", "x": 1}</tool_call>', "", [("f", "{}")]),
    ('<tool_call>{"name": "f", "arguments": {}, "x": {"y": [1]}}</tool_call>', "", [("f", "{}")]),
    ('<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}")]),
    ('<tool_call>{"name": "f", "arguments": ""}</tool_call>', "", [("f", "{}")]),
    ('<tool_call>{"arguments": "", "name": "f"}</tool_call>', "", [("f", "{}")]),
    ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
    ('<tool_call>{"name": "f"}', "", [("f", "{}")]),
    ('<tool_call>{"name": "f", "arguments": {}}', "", [("f", "{}")]),
    ('<tool_call>{"name": "f", "arguments": {}}}</tool_call>!', "!", [("f", "{}")]),
    ('<tool_call>{"name": "f", "arguments": {}</tool_call>!', "!", [("f", "{}")]),
    ('<tool_call>{"name": "f", "arguments": {"a": 1', "", [("f", '{"a": 1')]),
    (f'<tool_call>{{"name": "f", "x": {"[" * 30_000}</tool_call>', None, []),
    (f"<tool_call>{'x' * 3000}", None, []),
]


@pytest.mark.parametrize("length", [1, 1000, 100_000])
@pytest.mark.parametrize(("text", "content", "calls"), ODD_CALLS, ids=range(len(ODD_CALLS)))
def test_odd_calls(text: str, content: str | None, calls: list[tuple[str, str]], length: int) -> None:
    """None: the whole text is content."""
    answer = read(parser(), cuts(text, length))
    assert (answer.content, answer.calls) == (text if content is None else content, calls)
    json.dumps(answer.calls).encode()


def test_a_call_that_never_ends_swallows_neither_the_next_one_nor_the_text() -> None:
    """Each part is a call that was begun, then something else."""
    good = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    for begun in (
        "<tool_call>",
        '<tool_call>{"name": "f',
        '<tool_call>\n{"name": "f", "x": [',
        "<tool_call><function=a>",
    ):
        assert both(begun + "\n" + good + " end").calls[-1] == ("f", "{}"), begun
    assert both('<tool_call>{"name": "f", "arguments": {}} Hello').content == " Hello"
    assert both('<tool_call>{"name": "f", "arguments": {"a": 1 ' + good).calls == [("f", '{"a": 1 '), ("f", "{}")]


@pytest.mark.parametrize("start", ['<tool_call>{"', '<tool_call>{"name": "f", "x": [', "<function=f><parameter=a>"])
def test_no_text_is_held_back_for_ever(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_HELD_CHARS", 1000)
    text = start + "1, " * 1000
    reading = parser()
    shown = [piece for char in text for piece in reading.push(char)]
    assert "".join(map(str, shown)) == text


XML_VALUES: list[tuple[str, str, Any]] = [  # (parameter, text, value)
    ("city", "12", "12"),
    ("city", "\n  two\n\nlines \n", "  two\n\nlines "),
    ("city", "null", "null"),
    ("days", " 12 ", 12),
    ("days", "1.5", "1.5"),
    ("days", "true", "true"),
    ("share", "0.5", 0.5),
    ("share", "NaN", "NaN"),
    ("share", "None", None),
    ("deep", '{"a": [1]}', {"a": [1]}),
    ("deep", "[1, 2]", [1, 2]),
    ("deep", "{'a': [True, None]}", {"a": [True, None]}),
    ("deep", "{'a': {1}}", "{'a': {1}}"),
    ("deep", "[1, ", "[1, "),
    ("sure", "True", True),
    ("sure", "1", "1"),
    ("not in the schema", "1", "1"),
    ("city", 'a "quoted" <parameter> \\ \u2028', 'a "quoted" <parameter> \\ \u2028'),
]


@pytest.mark.parametrize(
    ("family", "text", "call_ids"),
    [
        (
            "kimi_k2",
            KIMI_CALL.format("f:7", "{}") + KIMI_CALL.format("f:8", "null"),
            ["functions.f:7", "functions.f:8"],
        ),
        ("mistral", "[TOOL_CALLS]f[CALL_ID]abcdef123[ARGS]{}", ["abcdef123"]),
        ("mistral", '[TOOL_CALLS][{"id": "abcdef123", "name": "f", "arguments": {}}]', ["abcdef123"]),
        ("kimi_k2", KIMI_CALL.format("f:0", "{}") + KIMI_CALL.format("f:0", "{}"), ["functions.f:0", ""]),
        ("kimi_k2", KIMI_CALL.format("é:0", "{}"), [""]),
        ("hermes", CALL, [""]),
    ],
)
def test_calls_keep_the_ids_that_the_model_wrote(family: str, text: str, call_ids: list[str]) -> None:
    """For templates that show them again. Empty: it has none of its own, or not one for each."""
    for parts in ([text], list(text)):
        reading = parser(family)
        pieces = [piece for part in parts for piece in reading.push(part)] + reading.close()
        got = [piece.call_id for piece in pieces if isinstance(piece, CallDelta) and piece.call_id]
        assert len(set(got)) == len(call_ids)
        for call_id, expected in zip(got, call_ids, strict=True):
            assert call_id == expected if expected else call_id.startswith("call_")


def test_types_are_found_where_the_schema_refers_to_them() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"allOf": [{"$ref": "#/$defs/B"}]}, "c": {"$ref": "#/$defs/C"}},
        "$defs": {"A": {"type": "object"}, "B": {"type": "integer"}, "C": {"$ref": "#/$defs/C"}},
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    reading = AnswerFormat("qwen3_coder", None).reading("", tools=tools).parser()
    values = '<parameter=a>{"x": 1}</parameter><parameter=b>2</parameter><parameter=c>3</parameter>'
    ((_, arguments),) = read(reading, [XML.format(values)]).calls
    assert json.loads(arguments) == {"a": {"x": 1}, "b": 2, "c": "3"}


def test_values_in_tags_get_their_type_from_the_schema() -> None:
    for name, text, value in XML_VALUES:
        ((_, arguments),) = both(XML.format(f"<parameter={name}>{text}</parameter>")).calls
        got = json.loads(arguments)
        assert (got, type(got[name])) == ({name: value}, type(value)), text


def test_a_parameter_without_an_end_ends_where_the_next_begins() -> None:
    ((_, arguments),) = both(XML.format("<parameter=city>a\n<parameter=days>2\n</parameter>\n")).calls
    assert json.loads(arguments) == {"city": "a", "days": 2}
    ((_, arguments),) = both(XML.format("<parameter=city>a\n")).calls
    assert json.loads(arguments) == {"city": "a"}


def test_arguments_are_streamed_as_they_come() -> None:
    reading = parser()
    assert reading.push('<tool_call>{"name": "f", "arguments": ')[0:] == []
    (first, second) = reading.push('{"a": 1')
    assert isinstance(first, CallDelta)
    assert isinstance(second, CallDelta)
    assert (first.name, first.arguments, second.arguments) == ("f", "", '{"a": 1')
    (third,) = reading.push(', "b": 2}}</tool')
    assert isinstance(third, CallDelta)
    assert third.arguments == ', "b": 2}'
    assert reading.push("_call>") == []
    assert reading.close() == []


def test_only_so_many_calls_as_allowed() -> None:
    answer = both(CALL + "\n" + CALL.replace("weather", "other"), max_calls=1)
    assert answer == Answer("", "", [("weather", ARGUMENTS)], 2)
