"""Content, reasoning and calls of an answer: apart, in every form, however the text is cut."""

from __future__ import annotations

import random

import pytest
from tests.gateway.answers import TOOLS, Answer, parser, read

from dualpath.config.gateway import REASONING_PARSERS, TOOL_CALL_PARSERS
from dualpath.gateway.text.answer import AnswerFormat, answer_format, chosen_format

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
CALLS = {
    "mistral": '[TOOL_CALLS]f{"a": 1}',
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
    "openai": "<|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>",
    "llama3_json": '<|python_tag|>{"name": "f", "parameters": {}}',
    "deepseek_v32": '<｜DSML｜invoke name="f"><｜DSML｜parameter name="days">1</｜DSML｜parameter></｜DSML｜invoke>',
    "kimi_k2": "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>",
    "glm45": "<tool_call>f\n<arg_key>days</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
    "minimax_m2": '<minimax:tool_call>\n<invoke name="f">\n<parameter name="days">1</parameter>\n</invoke>',
    "seed_oss": "<seed:tool_call><function=f><parameter=days>1</parameter></function></seed:tool_call>",
    "gemma4": '<|tool_call>call:f{a:<|"|>x<|"|>,b:[1]}<tool_call|>',
    "granite": '<|tool_call|>[{"name": "f", "arguments": {}}]',
    "phi4_mini_json": 'functools[{"name": "f", "arguments": {}}]',
    "hunyuan_a13b": '<tool_calls>[{"name": "f", "arguments": {}}]</tool_calls>',
    "nemotron_json": '<TOOLCALL>[{"name": "f", "arguments": {}}]</TOOLCALL>',
    "pythonic": "<|python_start|>[f(a='x')]<|python_end|>",
}
FORMATS = [
    ("hermes", "qwen3"),
    ("hermes", None),
    ("qwen3_coder", None),
    ("llama3_json", None),
    ("mistral", "mistral"),
    ("deepseek_v3", "deepseek_r1"),
    ("openai", "openai_gptoss"),
    *((calls, "qwen3") for calls in ("deepseek_v32", "kimi_k2", "glm45", "minimax_m2", "granite", "nemotron_json")),
    ("seed_oss", "seed_oss"),
    ("gemma4", "gemma4"),
    ("phi4_mini_json", None),
    ("pythonic", None),
    ("hunyuan_a13b", None),
]
FRAGMENTS = [
    *('{"name": "f", ', '"arguments": ', '"parameters": ', '{"a": 1}', "}", "{", "[", "]", '"', "\\", "null", ":", ","),
    *("<tool_call>", "</tool_call>", "\n", "\n\n", " ", "x", "text ", "é\u2028", ";", "<think>", "</think>", "<", ">"),
    *("<function=f>", "</function>", "<parameter=a>", "</parameter>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "f"),
    *(
        "[THINK]",
        "[/THINK]",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "function",
        "```json\n",
    ),
    *(
        "```",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
        "<|channel|>",
        "analysis",
        "final",
        "commentary",
        " to=functions.f",
    ),
    *(
        "<|message|>",
        "<|end|>",
        "<|start|>assistant",
        "<|call|>",
        "<|constrain|>json",
        CALL,
        '{"name": "f", "arguments": {}}',
    ),
    *(
        '<｜DSML｜invoke name="f">',
        "</｜DSML｜invoke>",
        '<｜DSML｜parameter name="a" string="true">',
        "</｜DSML｜function_calls>",
    ),
    *("<|tool_call_begin|>", "f:0", "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"),
    *(
        "<arg_key>",
        "a</arg_key>",
        "<arg_value>",
        "</arg_value>",
        '<invoke name="f">',
        "</invoke>",
        "<minimax:tool_call>",
    ),
    *('<parameter name="a">', "<seed:tool_call>", "<seed:think>", "</seed:think>", "<|tool_call>", "call:f{", "a:"),
    *('<|"|>', "<tool_call|>", "<|channel>thought\n", "<channel|>", "<|tool_call|>", "functools[", "<TOOLCALL>"),
    *("</TOOLCALL>", "[f(", "a='x'", ")]", "<|python_start|>", "<|python_end|>"),
]


@pytest.mark.parametrize(("calls", "reasoning"), FORMATS)
def test_streamed_is_what_whole_is(calls: str, reasoning: str | None) -> None:
    """Over texts made of all that any form knows, cut anywhere: nothing that is said depends on the cuts."""
    chance, num_with_calls = random.Random(calls), 0
    for _ in range(800):
        text = "".join(chance.choices([*FRAGMENTS, *2 * [CALLS.get(calls, CALL)]], k=chance.randint(1, 14)))
        prompt = chance.choice(["", "<think>\n"])
        whole = read(parser(calls, reasoning, prompt=prompt), [text])
        num_with_calls += bool(whole.calls)
        assert read(parser(calls, reasoning, prompt=prompt), list(text)) == whole, text
        places = sorted(chance.sample(range(len(text) + 1), min(3, len(text))))
        parts = [text[i:j] for i, j in zip([0, *places], [*places, len(text)], strict=True)]
        assert read(parser(calls, reasoning, prompt=prompt), parts) == whole, (text, places)
    assert num_with_calls > 8, "the texts are of no use"


@pytest.mark.parametrize("reasoning", ["qwen3", None])
@pytest.mark.parametrize("before", ["", "\n ", "Hm.\n", "<think>a</think>", CALL + "\n"])
def test_no_call_comes_out_of_reasoning_wherever_it_begins(before: str, reasoning: str | None) -> None:
    """Nor out of what looks like it where the model is not known to reason."""
    text = f"{before}<think>\n{CALL}\n</think>\n\nNo."
    num_calls = int(before.startswith("<tool_call>"))
    for parts in ([text], list(text)):
        answer = read(parser("hermes", reasoning), parts)
        assert len(answer.calls) == num_calls
        assert answer.content.endswith("No.")
        assert (CALL in answer.reasoning) == (reasoning is not None)
        assert (CALL in answer.content) == (reasoning is None)


def test_reasoning_that_the_prompt_opened() -> None:
    answer = read(parser("hermes", "qwen3", prompt="<|im_start|>assistant\n<think>\n"), [f"a {CALL}</think>{CALL}"])
    assert answer == Answer("", f"a {CALL}", [("f", '{"a": 1}')], 1)
    cut_off = read(parser("hermes", "qwen3", prompt="<think>"), [f"a {CALL}</thi"])
    assert cut_off == Answer("", f"a {CALL}</thi", [], 0)


def test_a_tag_with_a_line_behind_its_token() -> None:
    """As Gemma 4's, which the prompt may open too."""
    form = AnswerFormat("gemma4", "gemma4")
    for prompt, text in (("", "<|channel>thought\na\n<channel|>b"), ("<|channel>thought\n", "a\n<channel|>b")):
        assert read(form.reading(prompt).parser(), list(text)) == Answer("b", "a\n", [], 0)
    assert form.reading("").markup() == {"<|channel>", "<channel|>"}


def test_a_tag_within_a_line_is_text() -> None:
    text = "I write <think> and </think> so."
    assert read(parser("hermes", "qwen3"), [text]) == Answer(text, "", [], 0)


@pytest.mark.parametrize(("before", "is_tag"), [("a\n", True), ("a\n ", True), ("a\nb", False), ("a\n b", False)])
def test_tokens_that_pass_by_the_grammar_are_part_of_their_line(before: str, is_tag: bool) -> None:
    without_tools = AnswerFormat("hermes", "qwen3").reading("").parser()  # with them a line's break is held back
    answer = read(without_tools, list(f"{before}<think>x</think>y"))
    assert answer == (Answer(f"{before}y", "x", [], 0) if is_tag else Answer(f"{before}<think>x</think>y", "", [], 0))


def test_blank_text_around_calls_is_layout() -> None:
    for text in (f"\n\n{CALL}\n \n", f"<think>x</think>\n\n{CALL}\n\n{CALL}\n"):
        assert read(parser("hermes", "qwen3"), list(text)).content == ""
    assert read(parser(), [f"{CALL}\n\nDone. "]).content == "\n\nDone. "
    assert read(parser(), [" \n"]).content == " \n"


HARMONY = (
    "<|channel|>analysis<|message|>Think to=functions.f.<|end|><|start|>assistant"
    "<|channel|>commentary<|message|>I look.<|end|>"
    "<|start|>assistant<|channel|>analysis to=python<|message|>1+1<|call|>"
    '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": "x"}<|call|>'
    "<|start|>assistant<|channel|>final<|message|>Done.<|return|>"
)


def test_harmony_has_content_reasoning_and_calls_apart() -> None:
    expected = Answer("I look.\nDone.", "Think to=functions.f.\n1+1", [("f", '{"a": "x"}')], 1)
    for parts in ([HARMONY], list(HARMONY)):
        assert read(parser("openai", "openai_gptoss"), parts) == expected
    without_tools = AnswerFormat("openai", "openai_gptoss").reading("").parser()
    assert read(without_tools, [HARMONY]).calls == []


@pytest.mark.parametrize(
    ("template", "calls", "reasoning"),
    [
        ("{{ messages }}", "hermes", None),
        ("<tool_call> <think>", "hermes", "qwen3"),
        ("<tool_call>\n<function=example>", "qwen3_coder", None),
        ("<|start_header_id|> <|python_tag|>", "llama3_json", None),
        ("[TOOL_CALLS] [THINK]", "mistral", "mistral"),
        ("<｜tool▁calls▁begin｜> </think>", "deepseek_v3", "deepseek_r1"),
        ("<|start|>system<|message|> <|channel|>", "openai", "openai_gptoss"),
        ("'｜DSML｜' <think>", "deepseek_v32", "qwen3"),
        ("<|tool_calls_section_begin|>", "kimi_k2", None),
        ("<tool_call> <arg_key> <think>", "glm45", "qwen3"),
        ("<minimax:tool_call> <invoke name= <think>", "minimax_m2", "qwen3"),
        ("<seed:tool_call> <function= <seed:think>", "seed_oss", "seed_oss"),
        ("<|tool_call>call: <|channel>thought", "gemma4", "gemma4"),
        ("<|tool_call|>", "granite", None),
        ("<|tool|>", "phi4_mini_json", None),
        ("<TOOLCALL>", "nemotron_json", None),
        ("<tool_calls>", "hunyuan_a13b", None),
        ("<|tool_list_start|>", "pythonic", None),
        ("<|start_header_id|> [func_name1(a=b)]", "pythonic", None),
        ("<|header_start|>", "llama3_json", None),
    ],
)
def test_the_chat_template_tells_the_form(template: str, calls: str, reasoning: str | None) -> None:
    form = answer_format(template)
    assert (form.calls, form.reasoning) == (calls, reasoning)
    assert read(form.reading("", tools=TOOLS).parser(), ["x"]).content == "x"


@pytest.mark.parametrize(
    ("chosen", "form"),
    [
        (("auto", "auto"), ("hermes", "qwen3")),
        (("mistral", "auto"), ("mistral", "qwen3")),
        (("auto", "none"), ("hermes", None)),
        (("none", "deepseek_r1"), (None, "deepseek_r1")),
        (("qwen3_xml", "glm45"), ("qwen3_coder", "qwen3")),
        (("glm45", "kimi_k2"), ("glm45", "qwen3")),
        (("llama4_pythonic", "deepseek_v4"), ("pythonic", "qwen3")),
        (("openai", "auto"), ("openai", "openai_gptoss")),
    ],
)
def test_the_form_can_be_chosen(chosen: tuple[str, str], form: tuple[str | None, str | None]) -> None:
    found = chosen_format("<tool_call> <think>", *chosen)
    assert (found.calls, found.reasoning) == form


@pytest.mark.parametrize("calls", TOOL_CALL_PARSERS)
@pytest.mark.parametrize("reasoning", REASONING_PARSERS)
def test_every_choice_has_a_parser(calls: str, reasoning: str) -> None:
    reading = chosen_format("", calls, reasoning).reading("", tools=TOOLS)
    assert read(reading.parser(), ["x"]).content == "x"
    assert all(isinstance(mark, str) for mark in reading.markup())


def test_the_parser_sees_the_special_tokens_of_its_form() -> None:
    assert "<|channel|>" in AnswerFormat("openai", "openai_gptoss").reading("").markup()
    deepseek = AnswerFormat("deepseek_v3", "deepseek_r1")
    assert deepseek.reading("").markup() == {"<think>", "</think>"}
    assert "<｜tool▁sep｜>" in deepseek.reading("", tools=TOOLS).markup()
    assert AnswerFormat("hermes", None).reading("").markup() == frozenset()
