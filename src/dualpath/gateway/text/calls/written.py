"""Tool calls as the model wrote them, for chat templates that take tools and show no calls: there they are content."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_Calls = Sequence[tuple[str, Any]]  # names and arguments


def written_calls(form: str | None, template: str, calls: Sequence[Mapping[str, Any]]) -> str | None:
    """``calls`` in OpenAI's form, with arguments of any kind; None where the form is not known to need this."""
    write = _WRITERS.get(form or "")
    called = [(str(call["function"]["name"]), call["function"]["arguments"]) for call in calls]
    return None if write is None else write(template, called)


def _listed(calls: _Calls) -> str:
    return json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls], ensure_ascii=False)


def _hermes(_: str, calls: _Calls) -> str:
    objects = (json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) for name, arguments in calls)
    return "\n".join(f"<tool_call>\n{written}\n</tool_call>" for written in objects)


def _python(template: str, calls: _Calls) -> str:
    """LFM2 has marks around the list; Llama has none."""
    parts = []
    for name, arguments in calls:
        named = arguments if isinstance(arguments, dict) else {"arguments": arguments}
        parts.append(f"{name}({', '.join(f'{key}={value!r}' for key, value in named.items())})")
    written = f"[{', '.join(parts)}]"
    return f"<|tool_call_start|>{written}<|tool_call_end|>" if "<|tool_" in template else written


_WRITERS: dict[str, Callable[[str, _Calls], str]] = {
    "hermes": _hermes,
    "pythonic": _python,
    "granite": lambda _, calls: "<|tool_call|>" + _listed(calls),
    "phi4_mini_json": lambda _, calls: "<|tool_call|>" + _listed(calls) + "<|/tool_call|>",
}
