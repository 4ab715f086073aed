"""Tools of the Responses API as the chat API has them: functions, also those in namespaces, by one flat name each.

Tools that run at OpenAI (web search, code interpreter, ...) are not served: the model does without.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dualpath.gateway.errors import invalid

_SEPARATOR = "__"


@dataclass(frozen=True, slots=True)
class Tools:
    chat: list[dict[str, Any]] = field(default_factory=list)
    places: dict[str, tuple[str, str]] = field(default_factory=dict)  # flat name: (namespace, name)

    def names(self) -> set[str]:
        return {tool["function"]["name"] for tool in self.chat}


def flat_name(name: str, namespace: object) -> str:
    if not isinstance(namespace, str) or not namespace:
        return name
    return namespace + ("" if namespace.endswith(_SEPARATOR) else _SEPARATOR) + name


def tools_of(given: list[dict[str, Any]]) -> Tools:
    tools = Tools()
    for i, tool in enumerate(given):
        if tool.get("type") == "function":
            tools.chat.append(_function(tool, None, f"tools[{i}]"))
        elif tool.get("type") == "namespace":
            _add_namespace(tools, tool, f"tools[{i}]")
    return tools


def choice_of(choice: str | dict[str, Any] | None, tools: Tools) -> tuple[Tools, str | dict[str, Any] | None]:
    """Which tools there are, and what of them the model must call, in the chat API's form."""
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("tools")
        wanted = {_name_in(item) for item in allowed if isinstance(item, dict)} if isinstance(allowed, list) else set()
        chat = [tool for tool in tools.chat if tool["function"]["name"] in wanted]
        tools, choice = Tools(chat, tools.places), choice.get("mode") or "auto"
    if choice is None or (choice in ("auto", "none") and not tools.chat):
        return tools, None
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise invalid("tool_choice must be 'auto', 'none', 'required' or an object", "tool_choice")
        return tools, choice
    if not isinstance(choice, dict):
        raise invalid("tool_choice.mode must be a string", "tool_choice")
    if choice.get("type") != "function":
        raise invalid(f"tool_choice: tools of type {choice.get('type')!r} are not served here", "tool_choice")
    name = _name_in(choice)
    if name not in tools.names():
        raise invalid(f"tool_choice: there is no function {name!r}", "tool_choice")
    return tools, {"type": "function", "function": {"name": name}}


def _name_in(choice: dict[str, Any]) -> str:
    return flat_name(str(choice.get("name")), choice.get("namespace"))


def _add_namespace(tools: Tools, given: dict[str, Any], where: str) -> None:
    namespace, nested = given.get("name"), given.get("tools")
    if not isinstance(namespace, str) or not isinstance(nested, list):
        raise invalid(f"{where} must have a name and tools", where)
    for i, tool in enumerate(nested):
        if isinstance(tool, dict) and tool.get("type") == "function":
            chat = _function(tool, namespace, f"{where}.tools[{i}]")
            tools.chat.append(chat)
            tools.places[chat["function"]["name"]] = (namespace, tool["name"])


def _function(tool: dict[str, Any], namespace: str | None, where: str) -> dict[str, Any]:
    name, parameters = tool.get("name"), tool.get("parameters")
    if not isinstance(name, str):
        raise invalid(f"{where}.name must be a string", f"{where}.name")
    if parameters is not None and not isinstance(parameters, dict):
        raise invalid(f"{where}.parameters must be an object", f"{where}.parameters")
    function: dict[str, Any] = {"name": flat_name(name, namespace)}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    function["parameters"] = parameters or {"type": "object", "properties": {}}
    if tool.get("strict") is True:
        function["strict"] = True
    return {"type": "function", "function": function}
