"""Tool calls as model families write them, as grammars: for calls that must come, or must be right when they do."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import ClassVar

from dualpath.gateway.text.calls.form import CallForm, Tool, members
from dualpath.gateway.text.calls.gemma_form import GemmaForm
from dualpath.gateway.text.calls.tag_forms import (
    DsmlForm,
    DsmlNewForm,
    GlmDenseForm,
    GlmForm,
    MiniMaxForm,
    QwenCoderForm,
    SeedForm,
    parameters,
)
from dualpath.grammar.lark import either, json_value, quoted


def _object(tool: Tool, arguments: str = "arguments") -> str:
    name = json.dumps(tool.name, ensure_ascii=False)
    head = f'{{"name": {name}, "{arguments}": '
    return f"{quoted(head)} {tool.arguments} {quoted('}')}"


def _listed(item: str, separator: str, *, many: bool) -> str:
    return f"{item} ({quoted(separator)} {item})*" if many else item


class HermesForm(CallForm):
    opener, between = "<tool_call>", "\n"

    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        called = either([self.rules.add(self.call(tool)) for tool in tools])
        return f"{quoted(chr(10))} {called} {quoted(chr(10))} {self.mark('</tool_call>')}"

    def call(self, tool: Tool) -> str:
        return _object(tool)


class MistralNameForm(CallForm):
    """A name and its arguments behind each mark, in newer templates."""

    opener, between = "[TOOL_CALLS]", ""

    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        return either([self.rules.add(f"{quoted(t.name)} {self.mark('[ARGS]')} {t.arguments}") for t in tools])


class DeepSeekForm(CallForm):
    opener = "<｜tool▁calls▁begin｜>"

    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        item = self.rules.add(either([self._call(tool) for tool in tools]))
        more = f" ({self._gap()} {item})*" if many else ""
        return f"{item}{more} {self.mark('<｜tool▁calls▁end｜>')}"

    def _call(self, tool: Tool) -> str:
        name, separator = quoted(tool.name), self.mark("<｜tool▁sep｜>")
        call = f"{name} {separator} {tool.arguments}"
        return f"{self.mark('<｜tool▁call▁begin｜>')} {call} {self.mark('<｜tool▁call▁end｜>')}"

    def _gap(self) -> str:
        return ""


class DeepSeekBlockForm(DeepSeekForm):
    """V3 and R1: the arguments are in a block of code."""

    def _call(self, tool: Tool) -> str:
        name, separator = quoted(f"{tool.name}\n```json\n"), self.mark("<｜tool▁sep｜>")
        call = f"{quoted('function')} {separator} {name} {tool.arguments} {quoted(chr(10) + '```')}"
        return f"{self.mark('<｜tool▁call▁begin｜>')} {call} {self.mark('<｜tool▁call▁end｜>')}"

    def _gap(self) -> str:
        return quoted("\n")


class KimiForm(CallForm):
    """Ids with the number of a call; which one the model counts itself."""

    opener = "<|tool_calls_section_begin|>"

    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        item = self.rules.add(either([self.rules.add(self._call(tool)) for tool in tools]))
        return f"{item}{'+' if many else ''} {self.mark('<|tool_calls_section_end|>')}"

    def _call(self, tool: Tool) -> str:
        number = r"/[0-9]{1,4}/"
        head = f"{self.mark('<|tool_call_begin|>')} {quoted(f'functions.{tool.name}:')} {number}"
        return f"{head} {self.mark('<|tool_call_argument_begin|>')} {tool.arguments} {self.mark('<|tool_call_end|>')}"


class ListForm(CallForm):
    """A mark, a list of objects, perhaps another mark."""

    closer: ClassVar[str] = ""

    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        item = self.rules.add(either([_object(tool) for tool in tools]))
        end = self.mark(self.closer) if self.closer else ""
        return f"{quoted('[')} {_listed(item, ', ', many=many)} {quoted(']')} {end}"


class MistralForm(ListForm):
    opener = "[TOOL_CALLS]"


class GraniteForm(ListForm):
    opener = "<|tool_call|>"


class PhiForm(ListForm):
    opener, closer = "<|tool_call|>", "<|/tool_call|>"


class HunyuanForm(ListForm):
    opener, closer = "<tool_calls>", "</tool_calls>"


class NemotronForm(ListForm):
    opener, closer = "<TOOLCALL>", "</TOOLCALL>"


class PhiWordForm(CallForm):
    """``functools[...]``, as vLLM's template has it."""

    opener = "functools["

    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        item = self.rules.add(either([_object(tool) for tool in tools]))
        return f"{_listed(item, ', ', many=many)} {quoted(']')}"


class LlamaForm(CallForm):
    """Objects without any mark, or behind ``<|python_tag|>``; text does not begin as they do."""

    opener = "<|python_tag|>"

    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        item = self.rules.add(either([_object(tool, "parameters") for tool in tools]))
        return _listed(item, "; ", many=many)

    def forced(self, tools: Sequence[Tool], *, many: bool) -> str:
        return self.rules.add(self.behind(tools, many=many))

    def among_text(self, tools: Sequence[Tool]) -> str:
        text = self.rules.add(r"/[^{](?s:.*)/")
        return self.rules.add(f"({self.mark(self.opener)}? {self.forced(tools, many=True)} | {text})?")


class PythonForm(CallForm):
    """A list of calls without any mark; text does not begin as it does. Values are JSON, which the reader takes too."""

    opener = "["

    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        item = self.rules.add(either([self.rules.add(self._call(tool)) for tool in tools]))
        return f"{_listed(item, ', ', many=many)} {quoted(']')}"

    def _call(self, tool: Tool) -> str:
        """The required ones first."""
        rules: dict[bool, list[str]] = {True: [], False: []}
        for key, schema, is_required in parameters(tool):
            value = json_value(schema, is_strict=tool.is_strict)
            rules[is_required].append(self.rules.add(f"{quoted(key + '=')} {value}"))
        return f"{quoted(tool.name + '(')} {members(rules[True], rules[False], quoted(', '))} {quoted(')')}"

    def among_text(self, tools: Sequence[Tool]) -> str:
        text = self.rules.add(r"/[^\[](?s:.*)/")
        return self.rules.add(f"({self.forced(tools, many=True)} | {text})?")


def call_form(calls: str, template: str) -> type[CallForm]:
    """Of calls as ``AnswerFormat`` names them; a family's variants are told by its chat template."""
    is_variant, variant = _VARIANTS.get(calls, ("", HermesForm))
    return variant if is_variant and re.search(is_variant, template) else _FORMS.get(calls, HermesForm)


_FORMS: dict[str, type[CallForm]] = {
    "qwen3_coder": QwenCoderForm,
    "llama3_json": LlamaForm,
    "mistral": MistralForm,
    "deepseek_v3": DeepSeekForm,
    "deepseek_v32": DsmlForm,
    "kimi_k2": KimiForm,
    "glm45": GlmForm,
    "minimax_m2": MiniMaxForm,
    "seed_oss": SeedForm,
    "gemma4": GemmaForm,
    "granite": GraniteForm,
    "phi4_mini_json": PhiForm,
    "hunyuan_a13b": HunyuanForm,
    "nemotron_json": NemotronForm,
    "pythonic": PythonForm,
}
_VARIANTS: dict[str, tuple[str, type[CallForm]]] = {  # what only the variant's template has
    "mistral": (r"\[ARGS\]", MistralNameForm),
    "deepseek_v3": ("```json", DeepSeekBlockForm),
    "deepseek_v32": ("tool_calls>", DsmlNewForm),
    "glm45": ("</arg_key><arg_value>", GlmDenseForm),
    "phi4_mini_json": (r"functools\[", PhiWordForm),
}
