"""Answers cut anywhere: what a model may write, and the deltas that a choice makes of it."""

from __future__ import annotations

from hypothesis import strategies as st
from tests.gateway.answers import TOOLS

from dualpath.core.ids import RequestId
from dualpath.core.request import Request, SamplingParams, TokenEvent
from dualpath.gateway.job import GenerationJob, Prompt
from dualpath.gateway.openai.shapes import CachedTokens, Usage
from dualpath.gateway.text.answer import AnswerFormat, AnswerReading
from dualpath.gateway.text.choice import Choice, Delta

USAGE = Usage(5, 7, 12, CachedTokens(3))
FRAGMENTS = (
    *("Hello", " ", "\n", "\n\n", "é\u2028😀", "<", "</", "<tool", "{", "}", "[1]"),
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "\n<tool_call>\n"),
    '<tool_call>\n{"name": "weather", "arguments": {"city":"Paris"}}\n</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"a": [1, {"b": "}\\n"}]}}</tool_call>',
    '<tool_call>{"name": "other", "arguments": null}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {"a": </tool_call>',
    '<tool_call>{"name": "f", "arguments": {"a": 1, b}}</tool_call>',
    "<tool_call>\n<function=weather>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
)


def texts() -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(FRAGMENTS), max_size=7).map("".join)


def reading() -> AnswerReading:
    return AnswerFormat("hermes", "qwen3").reading("", tools=TOOLS)


def job() -> GenerationJob:
    request = Request(RequestId("x-1"), (1,), SamplingParams(max_tokens=5))
    choice = Choice(0, request, lambda ids: "")
    return GenerationJob("x-1", "fake", [Prompt((1,))], 1, [choice])


@st.composite
def deltas(draw: st.DrawFn) -> list[Delta]:
    """The last one ends the answer, with or without text."""
    text = draw(texts())
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)) | {0, len(text)})
    pieces = [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    out = [Delta(0, piece, [TokenEvent(i)]) for i, piece in enumerate(pieces)]
    out[-1].finish_reason = draw(st.sampled_from(["stop", "length"]))
    return out
