"""How a model's answers are read, told from its chat template, for every API shape alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualpath.gateway.text import harmony
from dualpath.gateway.text.answer_parser import AnswerParser, PlainParser
from dualpath.gateway.text.calls.grammars import GRAMMARS
from dualpath.gateway.text.content_parser import ContentParser
from dualpath.gateway.text.harmony import HarmonyParser

HARMONY, HARMONY_REASONING = "openai", "openai_gptoss"
AUTO, NONE = "auto", "none"  # as the chat template says; not at all
THINK_TAGS = ("<think>", "</think>")
_TAGS = {
    "qwen3": THINK_TAGS,
    "deepseek_r1": THINK_TAGS,
    "mistral": ("[THINK]", "[/THINK]"),
    "seed_oss": ("<seed:think>", "</seed:think>"),
    "gemma4": ("<|channel>thought\n", "<channel|>"),
}
# The first of these that a template writes tells the form. Some are parts of marks, as templates put them together.
_CALL_MARKS = (
    ("<｜tool▁calls▁begin｜>", "deepseek_v3"),
    ("｜DSML｜", "deepseek_v32"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("<arg_key>", "glm45"),
    ("<minimax:tool_call>", "minimax_m2"),
    ("<seed:tool_call>", "seed_oss"),
    ("<|tool_call>", "gemma4"),
    ("functools[", "phi4_mini_json"),
    ("<|tool|>", "phi4_mini_json"),
    ("<|tool_call|>", "granite"),
    ("<TOOLCALL>", "nemotron_json"),
    ("<tool_calls>", "hunyuan_a13b"),
    ("func_name1(", "pythonic"),  # what such templates tell the model to write
    ("<|tool_call_start|>", "pythonic"),
    ("<|tool_list_start|>", "pythonic"),
    ("[TOOL_CALLS]", "mistral"),
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3_json"),
    ("<|start_header_id|>", "llama3_json"),
    ("<|header_start|>", "llama3_json"),
)


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """How a model writes calls and reasoning (None: not at all), by the names that vLLM has for its parsers."""

    calls: str | None
    reasoning: str | None

    def reading(
        self, prompt: str, *, tools: Sequence[Mapping[str, Any]] = (), max_calls: int | None = None
    ) -> AnswerReading:
        """For the answers to one prompt. ``tools`` that the answer may call, in OpenAI's chat form; ``max_calls``: no
        more are passed on."""
        opens = self.reasoning is not None and prompt.rstrip().endswith(self.tags[0].rstrip())
        return AnswerReading(self, tuple(tools), max_calls, opens)

    @property
    def tags(self) -> tuple[str, str]:
        return _TAGS.get(self.reasoning or "", THINK_TAGS)


@dataclass(frozen=True, slots=True)
class AnswerReading:
    """How the answers to one prompt are read."""

    format: AnswerFormat
    tools: tuple[Mapping[str, Any], ...]
    max_calls: int | None
    prompt_opens_reasoning: bool

    def parser(self) -> AnswerParser:
        """A new one, for one choice."""
        calls, reasons = self.format.calls, self.format.reasoning is not None
        if calls == HARMONY:
            return HarmonyParser(calls=bool(self.tools), max_calls=self.max_calls)
        grammar = GRAMMARS[calls](self.tools) if self.tools and calls else None
        if grammar is None and not reasons:
            return PlainParser()
        return ContentParser(
            grammar,
            self.format.tags,
            splits_reasoning=reasons,
            in_reasoning=self.prompt_opens_reasoning,
            max_calls=self.max_calls,
        )

    def markup(self) -> frozenset[str]:
        """Special tokens that the parser must see, though content does not show them."""
        calls = self.format.calls
        if calls == HARMONY:
            return frozenset(harmony.MARKUP)
        marks = set(GRAMMARS[calls].markup()) if self.tools and calls else set()
        tags = map(tag_token, self.format.tags if self.format.reasoning or marks else ())
        return frozenset(marks.union(tags))


def tag_token(tag: str) -> str:
    """What of a tag may be one token: words may stand behind it."""
    return tag[: max(map(tag.rfind, ">]")) + 1]


# Names of vLLM's for forms that are read alike here.
_CALL_ALIASES = {
    "qwen3_xml": "qwen3_coder",
    "deepseek_v31": "deepseek_v3",
    "deepseek_v4": "deepseek_v32",
    "glm47": "glm45",
    "granite4": "hermes",
    "llama4_json": "llama3_json",
    "llama4_pythonic": "pythonic",
    "lfm2": "pythonic",
    "olmo3": "pythonic",
}
_REASONING_ALIASES = dict.fromkeys(("glm45", "glm47", "kimi_k2", "minimax_m2", "deepseek_v3", "deepseek_v4"), "qwen3")


def chosen_format(chat_template: str, calls: str = AUTO, reasoning: str = AUTO) -> AnswerFormat:
    """As somebody has set it, by the names of ``dualpath.config.gateway``. gpt-oss' form is one for both."""
    told = answer_format(chat_template)
    if calls == HARMONY or reasoning == HARMONY_REASONING:
        return AnswerFormat(HARMONY, HARMONY_REASONING)
    if told.calls == HARMONY and AUTO in (calls, reasoning):
        return told
    return AnswerFormat(
        _chosen(calls, told.calls, _CALL_ALIASES), _chosen(reasoning, told.reasoning, _REASONING_ALIASES)
    )


def _chosen(name: str, told: str | None, aliases: Mapping[str, str]) -> str | None:
    if name in (AUTO, NONE):
        return told if name == AUTO else None
    return aliases.get(name, name)


def answer_format(chat_template: str) -> AnswerFormat:
    """As the model's chat template writes it; where that says nothing, Hermes' calls."""
    if harmony.CHANNEL in chat_template:
        return AnswerFormat(HARMONY, HARMONY_REASONING)
    calls = next((name for mark, name in _CALL_MARKS if mark in chat_template), "hermes")
    for name in ("mistral", "seed_oss", "gemma4"):
        if _TAGS[name][0].rstrip() in chat_template:
            return AnswerFormat(calls, name)
    if any(tag in chat_template for tag in THINK_TAGS):
        return AnswerFormat(calls, "deepseek_r1" if calls == "deepseek_v3" else "qwen3")
    return AnswerFormat(calls, None)
