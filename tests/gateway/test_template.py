"""Conversations reach the prompt whole, whatever form the model's chat template wants them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tokenizers import AddedToken

from dualpath.core.errors import InvalidRequestError
from dualpath.gateway.errors import ApiError
from dualpath.gateway.openai.bodies import ChatBody
from dualpath.gateway.openai.messages import conversation_text
from dualpath.gateway.sse import sse
from dualpath.gateway.text.template import TemplateNeeds
from dualpath.gateway.text.tokenizer import Tokenizer

EACH = "{%- for m in messages %}"
CALLS = "{%- for c in m.tool_calls %}"
ENDS = "{%- endfor %}{%- endfor %}"
# As the families' templates read calls, reduced to that.
QWEN = (
    EACH + "[{{ m.role }}]{{ m.content }}" + CALLS + "({{ c.function.name }} {% if c.function.arguments is string %}"
    "{{ c.function.arguments }}{% else %}{{ c.function.arguments | tojson }}{% endif %})" + ENDS + "{# tools #}"
)
LLAMA = (
    EACH + "{%- if 'tool_calls' in m %}{%- if m.tool_calls|length != 1 %}{{ raise_exception('one call') }}{%- endif %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "{%- else %}[{{ m.role }}]{{ m.content }}{%- endif %}{%- endfor %}{# tools #}"
)
DEEPSEEK = (
    EACH + "{%- if m.role == 'assistant' and m.content is none %}" + CALLS + "{{ c.function.name + '\\n' + "
    "c.function.arguments + '\\n' }}{%- endfor %}{%- elif m.role == 'system' %}[system]{{ m.content }}"
    "{%- elif m.role != 'developer' %}[{{ m.role }}]{{ m.content }}{%- endif %}{%- endfor %}{# tools #}"
)
CODER = (
    EACH + "[{{ m.role }}]{{ m.content }}" + CALLS + "<function={{ c.function.name }}>"
    "{%- for k, v in c.function.arguments.items() %}<parameter={{ k }}>{{ v }}{%- endfor %}" + ENDS + "{# tools #}"
)
TEMPLATES = {"qwen": QWEN, "llama": LLAMA, "deepseek": DEEPSEEK, "coder": CODER}


def load(model_dir: Path, template: str) -> Tokenizer:
    inner = Tokenizer.load(model_dir)._inner
    inner.chat_template = template
    return Tokenizer(inner)


def prompt(tokenizer: Tokenizer, messages: list[dict[str, Any]], **fields: Any) -> str:
    body = msgspec.convert({"messages": messages, **fields}, ChatBody)
    return conversation_text(tokenizer, body, 1000)


def history(arguments: object) -> list[dict[str, Any]]:
    function = {"name": "read", "arguments": arguments}
    call = {"id": "c1", "type": "function", "function": function}
    return [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("qwen", TemplateNeeds(arguments_as_text=True)),
        ("llama", TemplateNeeds()),
        ("deepseek", TemplateNeeds(arguments_as_text=True, calls_without_content=True, names_developer=True)),
        ("coder", TemplateNeeds(arguments_as_object_only=True)),
    ],
)
def test_what_a_template_needs(model_dir: Path, name: str, needs: TemplateNeeds) -> None:
    assert load(model_dir, TEMPLATES[name]).template_needs == needs


@pytest.mark.parametrize("arguments", ['{"a":"x"}', {"a": "x"}, "", None, '{"a": ', "[1]", "null"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_conversation_goes_on_whatever_the_model_wrote(model_dir: Path, name: str, arguments: object) -> None:
    text = prompt(load(model_dir, TEMPLATES[name]), history(arguments))
    assert "read" in text
    assert "sunny" in text
    if arguments and '"x"' in json.dumps(arguments).replace("\\", ""):
        assert "x" in text.split("read")[1].split("sunny")[0]
    if arguments == '{"a":"x"}' and name in ("qwen", "deepseek"):
        assert arguments in text


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_calls_are_the_same_as_an_empty_list_of_them(model_dir: Path, name: str) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello", "tool_calls": []}]
    assert prompt(load(model_dir, TEMPLATES[name]), messages).endswith("[assistant]hello")


def test_developers_are_heard(model_dir: Path) -> None:
    deaf, hears = load(model_dir, LLAMA), load(model_dir, LLAMA + "{# developer #}")
    developer, user = {"role": "developer", "content": "X"}, {"role": "user", "content": "hi"}
    assert prompt(deaf, [developer, user]) == "[system]X[user]hi"
    assert prompt(deaf, [{"role": "system", "content": "S"}, developer, user]) == "[system]S\n\nX[user]hi"
    assert prompt(deaf, [user, developer]) == "[user]hi[system]X"
    assert prompt(hears, [developer, user]) == "[developer]X[user]hi"


# As Mistral's: a system message first or none, and turns that take turns. As Gemma's: no system message.
STRICT = (
    EACH + "{%- if m.role == 'system' and (not loop.first or SYSTEM) %}{{ raise_exception('no system') }}{%- endif %}"
    "{%- if not loop.first and m.role == 'user' == messages[loop.index0 - 1].role %}{{ raise_exception('turns') }}"
    "{%- endif %}[{{ m.role }}]{{ m.content }}{%- endfor %}"
)


def test_nobody_goes_unheard_by_a_template_that_is_strict_about_roles(model_dir: Path) -> None:
    first, never = (load(model_dir, STRICT.replace("SYSTEM", value)) for value in ("false", "true"))
    assert first.template_needs == TemplateNeeds(takes_tools=False, system_later=False, users_in_a_row=False)
    system, user, said = ({"role": role, "content": role[0]} for role in ("system", "user", "assistant"))
    assert prompt(first, [system, system, user, said, system, user]) == "[system]s\n\ns[user]u[assistant]a[user]s\n\nu"
    assert prompt(never, [system, user, said, user, system]) == "[user]s\n\nu[assistant]a[user]u\n\ns"
    start = prompt(never, [system, user, said, system])
    assert prompt(never, [system, user, said, system, said, user]).startswith(start)


def test_reasoning_is_given_by_the_name_that_the_template_reads(model_dir: Path) -> None:
    for name in ("reasoning_content", "reasoning", "thinking"):
        reads = load(model_dir, EACH + "[{{ m.NAME }}]{{ m.content }}{%- endfor %}".replace("NAME", name))
        for sent in ("reasoning_content", "reasoning"):
            assert prompt(reads, [{"role": "assistant", "content": "a", sent: "hm"}]) == "[hm]a"


def test_tools_need_a_template_that_has_them(model_dir: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    without = load(model_dir, EACH + "{{ m.content }}{%- endfor %}")
    with pytest.raises((ApiError, InvalidRequestError), match="no tools"):
        prompt(without, [{"role": "user", "content": "hi"}], tools=tools)
    assert prompt(without, [{"role": "user", "content": "hi"}], tools=[]) == "hi"


def test_tokens_that_decoding_skips_are_special_without_a_role_of_their_own(model_dir: Path) -> None:
    inner = Tokenizer.load(model_dir)._inner
    inner.add_tokens([AddedToken("<|python_tag|>", special=True), AddedToken("<plain>", special=False)])
    tokenizer = Tokenizer(inner)
    for token in ("<|python_tag|>", "<plain>"):
        ids = tokenizer.encode(token, add_special_tokens=False)
        skipped = tokenizer.decode(ids, skip_special_tokens=True) == ""
        assert skipped == (token in tokenizer.special_tokens) == (token == "<|python_tag|>")


def test_events_have_no_line_breaks_but_their_own() -> None:
    text = "a\u2028b\u2029c\x85d\ré"
    event = sse({"text": text}).decode()
    assert event.splitlines() == [event.removesuffix("\n\n"), ""]
    assert json.loads(event.removeprefix("data: ")) == {"text": text}
