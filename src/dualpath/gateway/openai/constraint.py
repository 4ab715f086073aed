"""What a body wants of its answer's form, as a grammar: OpenAI's fields, vLLM's and SGLang's, old and new."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from dualpath.core.errors import InvalidRequestError
from dualpath.gateway.errors import invalid
from dualpath.gateway.openai.bodies import ChatBody, Generation
from dualpath.gateway.text.answer import AnswerFormat
from dualpath.gateway.text.answer_grammar import Content, Wanted, answer_grammar, content_grammar
from dualpath.gateway.text.calls.form import Tool
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.grammar import lark
from dualpath.grammar.lark import Rules

T = TypeVar("T")

ANY_OBJECT = {"type": "object"}
Named = tuple[str, Content]  # the field that asks for it


def completion_grammar(body: Generation, tokenizer: Tokenizer, *, holds_forms: bool) -> str:
    """Empty where any text will do. Raises InvalidRequestError, which names the field."""
    named = _content(body)
    if named is None:
        return ""
    field, content = named
    if not holds_forms:
        raise _not_held(field)
    grammar = _checked(field, partial(content_grammar, content))
    _checked(field, partial(tokenizer.grammars.check, grammar))
    return grammar


def chat_grammar(
    body: ChatBody,
    tools: Sequence[dict[str, Any]],
    format: AnswerFormat,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    holds_forms: bool,
) -> str:
    """The same, of an answer as the model family writes it. ``tools``: those that may be called."""
    named = _content(body)
    names, must_call = _chosen(body)
    chosen = [(i, tool) for i, tool in enumerate(tools) if names is None or tool["function"]["name"] in names]
    if tools and not chosen:
        raise invalid(f"tool_choice: there is no tool {' or '.join(sorted(names or ()))!r}", "tool_choice")
    if not must_call and named is None and not any(_is_strict(tool) for _, tool in chosen):
        return ""
    if not holds_forms:
        if named is None and not must_call:
            return ""  # strict tools are tools
        raise _not_held("tool_choice" if named is None else named[0])
    callable_ = [_tool(tool, f"tools[{i}]") for i, tool in chosen]
    if callable_ and format.calls is None:
        raise invalid("this model's answers have no form for calls", "tool_choice", "unsupported_parameter")
    one = body.parallel_tool_calls is False or isinstance(body.tool_choice, dict)
    wanted = Wanted(None if must_call or named is None else named[1], callable_, must_call, not one)
    field = "tools" if named is None else named[0]
    grammar = _checked(field, partial(answer_grammar, wanted, format, tokenizer, prompt))
    _checked(field, partial(tokenizer.grammars.check, grammar))
    return grammar


def _not_held(field: str) -> InvalidRequestError:
    return invalid(f"{field}: these engines cannot hold an answer to it", field, "unsupported_parameter")


def _chosen(body: ChatBody) -> tuple[set[str] | None, bool]:
    """(names of the tools that may be called, None for all; whether one must be)."""
    choice = body.tool_choice
    if not isinstance(choice, dict):
        return None, choice == "required"
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        items = allowed.get("tools") if isinstance(allowed, dict) else None
        names = {_name(item) for item in items} if isinstance(items, list) else set()
        return names, isinstance(allowed, dict) and allowed.get("mode") == "required"
    return {_name(choice)}, True


def _name(choice: object) -> str:
    """Of a tool: chat's form, or the flat one of responses."""
    given = choice if isinstance(choice, dict) else {}
    function = given.get("function", given)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise invalid("tool_choice must be 'auto', 'none', 'required' or name a function", "tool_choice")
    return name


def _tool(tool: dict[str, Any], where: str) -> Tool:
    function = tool["function"]
    name, schema = function["name"], function.get("parameters")
    if schema is None:
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
    param = f"{where}.function.parameters"
    if not isinstance(schema, dict):
        raise invalid(f"{param} must be an object", param)
    if not schema.keys() & {"type", "$ref", "anyOf", "allOf", "oneOf"}:
        schema = {**schema, **ANY_OBJECT}
    made = Tool(name, schema, _is_strict(tool))
    try:
        _ = made.arguments
    except InvalidRequestError as error:
        if made.is_strict:
            message = f"Invalid schema for function '{name}': {error}"
            raise invalid(message, param, "invalid_function_parameters") from None
        return Tool(name, ANY_OBJECT, is_strict=False)  # clients bring tools of all kinds
    return made


def _is_strict(tool: dict[str, Any]) -> bool:
    return tool["function"].get("strict") is True


# -- content ----------------------------------------------------------------------------------------------------------


def _content(body: Generation) -> Named | None:
    """What content must be; one field at most says so."""
    found = [*_response_format(body), *_structured(body), *_guided(body)]
    if len(found) > 1:
        raise invalid(f"{found[0][0]} and {found[1][0]} cannot both be given", found[1][0])
    return found[0] if found else None


def _response_format(body: Generation) -> Iterator[Named]:
    wanted = body.response_format
    if wanted is None or wanted.get("type") == "text":
        return
    if wanted.get("type") == "json_object":
        yield "response_format", _json(ANY_OBJECT, is_strict=False)
        return
    if wanted.get("type") != "json_schema":
        raise invalid("response_format.type must be 'text', 'json_object' or 'json_schema'", "response_format.type")
    given = wanted.get("json_schema")
    schema = given.get("schema") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(schema, dict):
        raise invalid("response_format.json_schema.schema must be an object", "response_format.json_schema")
    name, is_strict = given.get("name", "answer"), given.get("strict") is True
    try:
        lark.json_value(schema, is_strict=is_strict)
    except InvalidRequestError as error:
        raise invalid(f"Invalid schema for response_format '{name}': {error}", "response_format") from None
    yield "response_format", _json(schema, is_strict=is_strict)


def _structured(body: Generation) -> Iterator[Named]:
    wanted = body.structured_outputs
    if wanted is None:
        return
    if wanted.structural_tag is not None:
        field = "structured_outputs.structural_tag"
        raise invalid(f"{field} is not supported", field, "unsupported_parameter")
    yield from _by_kind("structured_outputs.", wanted.json, wanted.regex, wanted.choice, wanted.grammar)
    if wanted.json_object:
        yield "structured_outputs.json_object", _json(ANY_OBJECT, is_strict=False)


def _guided(body: Generation) -> Iterator[Named]:
    """vLLM's older names, and SGLang's."""
    yield from _by_kind("guided_", body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar)
    yield from _by_kind("", None, body.regex, None, None)
    for field, text in (("json_schema", body.json_schema), ("ebnf", body.ebnf)):
        if text is not None:
            yield field, (_json_text(text) if field == "json_schema" else _grammar(text))


def _by_kind(
    prefix: str, json: str | dict[str, Any] | None, regex: str | None, choice: list[str] | None, grammar: str | None
) -> Iterator[Named]:
    if json is not None:
        yield f"{prefix}json", _json_text(json) if isinstance(json, str) else _json(json, is_strict=False)
    if regex is not None:
        yield f"{prefix}regex", lambda _: lark.regex(regex)
    if choice is not None:
        yield f"{prefix}choice", lambda _: lark.choice(choice)
    if grammar is not None:
        yield f"{prefix}grammar", _grammar(grammar)


def _json(schema: dict[str, Any], *, is_strict: bool) -> Content:
    return lambda _: lark.json_value(schema, is_strict=is_strict)


def _json_text(text: str) -> Content:
    return lambda _: lark.json_value(lark.parsed(text), is_strict=False)


def _grammar(text: str) -> Content:
    def content(rules: Rules) -> str:
        return rules.other(lark.grammar(text))

    return content


def _checked(field: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except InvalidRequestError as error:
        raise error if error.param else invalid(f"{field}: {error}", field, "invalid_grammar") from error
