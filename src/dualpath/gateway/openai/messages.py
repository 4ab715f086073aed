"""Conversations as clients send them, checked and brought into the form that chat templates expect."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from dualpath.gateway.errors import invalid
from dualpath.gateway.json_size import ContainerLimit
from dualpath.gateway.openai.bodies import ChatBody, TokenizeBody
from dualpath.gateway.openai.roles import fit_answers, fit_calls, fit_roles
from dualpath.gateway.text.answer import answer_format
from dualpath.gateway.text.calls.written import written_calls
from dualpath.gateway.text.template import TemplateNeeds
from dualpath.gateway.text.tokenizer import Tokenizer

_RESULT_ROLES = ("tool", "function")
# The field of a part that has its text: OpenAI's, by the names of both its APIs.
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def conversation_text(tokenizer: Tokenizer, body: ChatBody | TokenizeBody, max_containers: int) -> str:
    """The prompt's text: messages and tools through the model's chat template.

    ``max_containers``: objects and arrays in all arguments of tool calls, which are JSON inside of JSON.
    """
    add_prompt = body.add_generation_prompt is not False
    continue_final = bool(body.continue_final_message)
    if add_prompt and continue_final:
        raise invalid(
            "continue_final_message and add_generation_prompt cannot both be true; "
            "set add_generation_prompt to false to continue the final message",
            "continue_final_message",
        )
    if not body.messages:
        raise invalid("messages must not be empty", "messages")
    limit = ContainerLimit(max_containers)
    needs = tokenizer.template_needs
    messages = [_message(needs, message, limit, f"messages[{i}]") for i, message in enumerate(body.messages)]
    for i, tool in enumerate(body.tools or []):
        _check_tool(tool, f"tools[{i}]")
    if body.tools and not needs.takes_tools:
        raise invalid("this model's chat template has no tools", "tools", "unsupported_parameter")
    if needs.takes_tools and not needs.shows_calls:
        form = answer_format(tokenizer.chat_template).calls
        messages = [_with_written_calls(form, tokenizer.chat_template, message) for message in messages]
    return tokenizer.render_chat(
        fit_answers(fit_calls(fit_roles(messages, needs), needs), needs),
        [_shown_tool(needs, tool) for tool in body.tools or []] or ([] if needs.lists_no_tools else None),
        add_generation_prompt=add_prompt,
        continue_final_message=continue_final,
        template_kwargs=_template_kwargs(body),
    )


def _template_kwargs(body: ChatBody | TokenizeBody) -> dict[str, Any]:
    kwargs = dict(body.chat_template_kwargs or {})
    if isinstance(body, ChatBody) and body.reasoning_effort is not None:
        kwargs.setdefault("reasoning_effort", body.reasoning_effort)
    return kwargs


def _message(needs: TemplateNeeds, message: dict[str, Any], limit: ContainerLimit, where: str) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise invalid(f"{where}.role must be a string", f"{where}.role")
    # Clients send back what they got, empty fields included; templates often only ask whether a key exists.
    out = {key: value for key, value in message.items() if value is not None}
    content = out.get("content")
    if role == "assistant" and isinstance(content, list):
        content = _without_reasoning(content, out)
    is_result = role in _RESULT_ROLES
    out["content"] = content if isinstance(content, str) else _joined_text(content, is_result, f"{where}.content")
    if role == "assistant":
        _name_reasoning(needs, out)
    if "tool_calls" in out:
        calls = out["tool_calls"]
        if not isinstance(calls, list):
            raise invalid(f"{where}.tool_calls must be an array", f"{where}.tool_calls")
        if not calls:  # templates often only ask whether the key exists
            del out["tool_calls"]
            return out
        out["tool_calls"] = [_call(needs, call, limit, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
        if needs.calls_without_content and not out["content"]:
            out["content"] = None
    return out


def _name_reasoning(needs: TemplateNeeds, message: dict[str, Any]) -> None:
    """By all names that it has: which of them a template reads is its own business."""
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(reasoning, str):
        return
    message["reasoning_content"] = message["reasoning"] = reasoning
    if not needs.names_thinking:
        return
    message.setdefault("thinking", reasoning)
    if needs.thinks_or_says and message["content"] and message.get("tool_calls"):
        message["thinking"], message["content"] = f"{reasoning}\n\n{message['content']}", ""


def _without_reasoning(content: list[Any], message: dict[str, Any]) -> list[Any]:
    """The parts but for reasoning, which goes where other clients send it, unless it is there already."""
    thoughts = [part["thinking"] for part in content if _is_thought(part)]
    if thoughts and not (message.get("reasoning_content") or message.get("reasoning")):
        message["reasoning_content"] = "".join(_thought(thought) for thought in thoughts)
    return [part for part in content if not _is_thought(part)]


def _is_thought(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "thinking" and "thinking" in part


def _thought(thinking: object) -> str:
    """Text, or parts of it."""
    if isinstance(thinking, list):
        return "".join(_thought(part.get("text")) for part in thinking if isinstance(part, dict))
    return thinking if isinstance(thinking, str) else ""


def _joined_text(content: object, is_result: bool, where: str) -> str:
    if content is None:
        return ""
    if not isinstance(content, list):
        raise invalid(f"{where} must be a string or an array of parts", where)
    return "\n".join(_part_text(part, is_result, f"{where}[{i}]") for i, part in enumerate(content))


def _part_text(part: object, is_result: bool, where: str) -> str:
    """What a tool has found need not be text: the model is told so, as the conversation has to go on."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise invalid(f"{where} must be an object", where)
    kind = part.get("type")
    field = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if field is None:
        if is_result:
            return not_shown(kind)
        raise invalid(f"{where}.type must be 'text': this model takes text only", f"{where}.type")
    text = part.get(field)
    if not isinstance(text, str):
        raise invalid(f"{where}.{field} must be a string", f"{where}.{field}")
    return text


def not_shown(kind: object) -> str:
    """What a model is told in place of what it cannot be shown."""
    return f"[{kind}: not shown, this model takes text only]"


def _call(needs: TemplateNeeds, call: object, limit: ContainerLimit, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(f"{where} must be an object with a function and its name", where)
    arguments = _arguments(needs, function.get("arguments"), limit, where)
    return {**call, "function": {**function, "arguments": arguments}}


def _arguments(needs: TemplateNeeds, arguments: object, limit: ContainerLimit, where: str) -> object:
    """In the form that the template takes. Whatever the model wrote, the conversation goes on."""
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = "{}"
    if needs.arguments_as_text:
        try:
            return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        except RecursionError as error:
            raise invalid(f"{where}.function.arguments is nested too deeply", where) from error
    if isinstance(arguments, str):
        limit.check(arguments.encode("utf-8", "replace"), where)
        # If what the model wrote was no JSON, let it see its own mistake.
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    if needs.arguments_as_object_only and not isinstance(arguments, dict):
        return {"arguments": arguments}
    return arguments


def _with_written_calls(form: str | None, template: str, message: dict[str, Any]) -> dict[str, Any]:
    """Calls as content, where the template would lose them."""
    if not message.get("tool_calls"):
        return message
    written = written_calls(form, template, message["tool_calls"])
    if written is None:
        return message
    return {**message, "content": "\n".join(filter(None, (message["content"], written)))}


def _shown_tool(needs: TemplateNeeds, tool: dict[str, Any]) -> dict[str, Any]:
    function = dict(tool["function"])
    if needs.describes_tools and not isinstance(function.get("description"), str):
        function["description"] = ""
    if needs.completes_tools:
        given = function.get("parameters")
        function["parameters"] = {"type": "object", "properties": {}, **(given if isinstance(given, dict) else {})}
    if needs.one_type:
        try:
            function["parameters"] = _with_one_type_each(function.get("parameters"))
        except RecursionError as error:
            raise invalid("a tool's schema is nested too deeply", "tools") from error
    return {**tool, "function": function}


def _with_one_type_each(schema: Any) -> Any:
    """The same, with alternatives in place of a list of types."""
    if isinstance(schema, list):
        return [_with_one_type_each(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: _with_one_type_each(value) for key, value in schema.items()}
    types = out.get("type")
    if isinstance(types, list) and "anyOf" not in out:
        del out["type"]
        out["anyOf"] = [{"type": one} for one in types]
    return out


def _check_tool(tool: dict[str, Any], where: str) -> None:
    if tool.get("type") != "function":
        raise invalid(f"{where}.type must be 'function'", f"{where}.type")
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(f"{where}.function must be an object with a name", f"{where}.function")
