"""Conversations reach the prompt whole, whatever form the model's chat template wants them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.gateway.answers import parser, read
from tokenizers import AddedToken

from dualpath.core.errors import InvalidRequestError
from dualpath.gateway.errors import ApiError
from dualpath.gateway.openai.bodies import ChatBody
from dualpath.gateway.openai.messages import conversation_text
from dualpath.gateway.openai.own_calls import reads_own_calls
from dualpath.gateway.openai.plan import Planner
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.sse import sse
from dualpath.gateway.text.answer import AnswerFormat, answer_format
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
        ("llama", TemplateNeeds(one_call=True, content_apart=True)),
        ("deepseek", TemplateNeeds(arguments_as_text=True, calls_without_content=True, content_apart=True)),
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


# As gpt-oss': one who instructs, at the start only; one call in a message, which has either content or thoughts.
OSS = (
    "{%- for t in tools or [] %}{{ '// ' + t.function.description }}{%- endfor %}"
    "{%- if messages[0].role in ('system', 'developer') %}[developer]{{ messages[0].content }}{%- endif %}" + EACH + ""
    "{%- if m.role == 'assistant' and m.tool_calls %}"
    "{%- if m.content and m.thinking %}{{ raise_exception('both') }}{%- endif %}[analysis]{{ m.content or m.thinking }}"
    "[call]{{ m.tool_calls[0].function.name + m.tool_calls[0].function.arguments }}"
    "{%- elif m.role not in ('system', 'developer') %}[{{ m.role }}]{{ m.content }}{%- endif %}{%- endfor %}"
)


def test_nobody_goes_unheard_by_a_template_that_hears_one_developer(model_dir: Path) -> None:
    oss = load(model_dir, OSS)
    assert oss.template_needs == TemplateNeeds(
        describes_tools=True,
        developer_first=True,
        arguments_as_text=True,
        one_call=True,
        names_thinking=True,
        thinks_or_says=True,
        system_later=False,
    )
    system, developer, user = ({"role": role, "content": role[0]} for role in ("system", "developer", "user"))
    assert prompt(oss, [system, developer, user]) == "[developer]s\n\nd[user]u"
    assert prompt(oss, [developer, system, developer, user]) == "[developer]d\n\ns\n\nd[user]u"
    assert prompt(oss, [developer, user, developer]) == "[developer]d[user]u[user]d"


def test_tools_need_no_description(model_dir: Path) -> None:
    for told in ({}, {"description": None}, {"description": "reads"}):
        tools = [{"type": "function", "function": {"name": "f", **told}}]
        text = prompt(load(model_dir, OSS), [{"role": "user", "content": "hi"}], tools=tools)
        assert text == f"// {told.get('description') or ''}[user]hi"


def test_tools_need_no_schema(model_dir: Path) -> None:
    """As Seed-OSS' and Hermes' templates, which look into it without asking whether it is there."""
    looks = (
        "{%- for t in tools or [] %}{%- for k, v in t.function.parameters.properties.items() %}{{ k }}={{ v.type }};"
        "{%- endfor %}{%- endfor %}" + QWEN
    )
    strict = load(model_dir, looks)
    assert strict.template_needs == TemplateNeeds(completes_tools=True, arguments_as_text=True)
    for told in ({}, {"parameters": None}, {"parameters": {}}, {"parameters": {"type": "object"}}):
        tools = [{"type": "function", "function": {"name": "f", **told}}]
        assert prompt(strict, [{"role": "user", "content": "hi"}], tools=tools) == "[user]hi"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}}]
    assert prompt(strict, [{"role": "user", "content": "hi"}], tools=tools) == "a=string;[user]hi"


def test_lists_of_types_are_alternatives_where_a_template_takes_one(model_dir: Path) -> None:
    one = (
        "{%- for t in tools or [] %}{%- for k, v in t.function.parameters.properties.items() %}"
        "{%- if v.type is defined and v.type is not string %}{{ raise_exception('type') }}{%- endif %}{{ v | tojson }}"
        "{%- endfor %}{%- endfor %}" + QWEN
    )
    properties = {"type": {"type": "string"}, "a": {"type": ["string", "null"], "description": "d"}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}}]
    text = prompt(load(model_dir, one), [{"role": "user", "content": "hi"}], tools=tools)
    assert text.startswith('{"type": "string"}{"description": "d", "anyOf": [{"type": "string"}, {"type": "null"}]}')
    text = prompt(load(model_dir, one.replace("raise_exception('type')", "''")), [*history("{}")][:1], tools=tools)
    assert '["string", "null"]' in text


def test_thoughts_and_content_beside_a_call_are_both_told(model_dir: Path) -> None:
    messages = history("{}")
    messages[1] |= {"content": "I read.", "reasoning_content": "hm"}
    assert "[analysis]hm\n\nI read.[call]read{}" in prompt(load(model_dir, OSS), messages)


@pytest.mark.parametrize("name", [*TEMPLATES, "oss"])
def test_every_call_is_shown_before_its_result_and_so_is_what_was_said(model_dir: Path, name: str) -> None:
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": f"call-{i}", "arguments": "{}"}} for i in range(3)
    ]
    results = [{"role": "tool", "tool_call_id": f"c{i}", "content": f"result-{i}"} for i in (2, 0, 1)]
    asked = {"role": "assistant", "content": "said", "tool_calls": calls}
    tokenizer = load(model_dir, TEMPLATES.get(name, OSS))
    text = prompt(tokenizer, [{"role": "user", "content": "hi"}, asked, *results, {"role": "user", "content": "end"}])
    places = [text.index(part) for part in ("said", "call-0", "call-1", "call-2", "end")]
    assert places == sorted(places)
    for i in range(3):
        assert text.index(f"call-{i}") < text.index(f"result-{i}") < text.index("end")
    if tokenizer.template_needs.one_call:
        assert text.index("result-0") < text.index("call-1") < text.index("result-1") < text.index("call-2")


def test_results_that_nobody_asked_for_keep_their_place(model_dir: Path) -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": name, "arguments": "{}"}} for name in ("one", "two")]
    results = [{"role": "tool", "tool_call_id": name, "content": name} for name in ("c9", "c1")]
    asked = {"role": "assistant", "content": None, "tool_calls": calls}
    text = prompt(load(model_dir, OSS), [{"role": "user", "content": "hi"}, asked, *results])
    assert text.replace("None", "").replace("[analysis]", "") == "[user]hi[call]one{}[tool]c1[call]two{}[tool]c9"


# As Mistral's older ones.
NINE = (
    EACH + "{%- for i in ([m.tool_call_id] if m.role == 'tool' else m.tool_calls | map(attribute='id') | list) %}"
    "{%- if i | length != 9 %}{{ raise_exception('nine') }}{%- endif %}({{ i }}){%- endfor %}"
    "[{{ m.role }}]{{ m.content }}" + CALLS + "{{ c.function | tojson }}" + ENDS + "{# tools #}"
)


@pytest.mark.parametrize("call_id", ["call_0123456789abcdef01234567", "c1", "", "not-alnum", "abcdef123", None])
def test_ids_of_calls_are_as_the_template_wants_them(model_dir: Path, call_id: str | None) -> None:
    nine = load(model_dir, NINE)
    assert nine.template_needs.short_call_ids
    messages = history("{}")
    messages[1]["tool_calls"][0]["id"] = messages[2]["tool_call_id"] = call_id
    text = prompt(nine, messages)
    assert text == prompt(nine, messages)
    first, second = text.split("(")[1][:9], text.split("(")[2][:9]
    assert first == second
    assert first.isalnum()
    assert (first == call_id) == (call_id == "abcdef123")


def test_a_user_who_speaks_beside_a_result_is_heard(model_dir: Path) -> None:
    """By a template that counts turns without calls and results, as Mistral's do."""
    turns = (
        "{%- set said = messages | rejectattr('role', 'equalto', 'tool') | rejectattr('tool_calls') | list %}"
        "{%- for m in said %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}"
        "{%- endif %}{%- endfor %}"
        + EACH
        + "[{{ m.role }}]{{ m.content }}"
        + CALLS
        + "{{ c.function | tojson }}"
        + ENDS
    )
    messages = [*history("{}"), {"role": "user", "content": "go on"}]
    text = prompt(load(model_dir, turns), [*messages, {"role": "assistant", "content": "yes"}, messages[-1]])
    assert text.endswith("[tool]sunny\n\ngo on[assistant]yes[user]go on")
    assert prompt(load(model_dir, turns.replace("raise_exception('turns')", "''")), messages).endswith("[user]go on")


def test_who_is_moved_to_the_front_is_no_system_message(model_dir: Path) -> None:
    """As DeepSeek's: all that has been stored of the conversation would begin otherwise."""
    front = (
        "{%- for m in messages if m.role == 'system' %}{{ m.content }}{%- endfor %}"
        "{%- for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{%- endfor %}"
    )
    system, user = {"role": "system", "content": "s"}, {"role": "user", "content": "u"}
    assert prompt(load(model_dir, front), [system, user, system]) == "s[user]u[user]s"


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


# As Mistral's: turns that take turns, but for calls and their results; nothing empty.
TURNS = (
    "{%- set said = messages | rejectattr('role', 'equalto', 'tool') | rejectattr('tool_calls') | list %}"
    "{%- for m in said %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) or not m.content %}"
    "{{ raise_exception('turns') }}{%- endif %}{%- endfor %}"
    + EACH
    + "[{{ m.role }}]{{ m.content }}"
    + CALLS
    + "{{ c.function.name }}"
    + ENDS
    + "{# tools #}"
)


def test_two_answers_in_a_row_are_one_where_turns_must_take_turns(model_dir: Path) -> None:
    turns, any_order = load(model_dir, TURNS), load(model_dir, TURNS.replace("raise_exception('turns')", "''"))
    assert not turns.template_needs.assistants_in_a_row
    user, said = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
    assert prompt(turns, [user, said, said, user]) == "[user]u[assistant]a\n\na[user]u"
    assert prompt(any_order, [user, said, said, user]) == "[user]u[assistant]a[assistant]a[user]u"
    _, asked, result = history("{}")
    assert (
        prompt(turns, [user, said, asked, result, said, user])
        == "[user]u[assistant]aread[tool]sunny[assistant]a[user]u"
    )
    assert prompt(turns, [user, asked, said, result]) == "[user]u[assistant]aread[tool]sunny"
    assert prompt(turns, [user, {**asked, "content": "b"}, asked, result]) == "[user]u[assistant]breadread[tool]sunny"
    thought = {**said, "reasoning_content": "hm"}
    shows = load(model_dir, TURNS.replace("{{ m.content }}", "{{ m.reasoning }}|{{ m.content }}"))
    assert prompt(shows, [user, thought, thought, user]) == "[user]|u[assistant]hm\n\nhm|a\n\na[user]|u"


def test_calls_that_were_broken_off_are_followed_by_what_stands_for_a_result(model_dir: Path) -> None:
    user, asked, _ = history("{}")
    text = prompt(load(model_dir, TURNS), [user, asked, user, {"role": "assistant", "content": "a"}, user])
    assert text == "[user]hi[assistant]read[tool][no result]\n\nhi[assistant]a[user]hi"
    free = load(model_dir, TURNS.replace("raise_exception('turns')", "''"))
    assert prompt(free, [user, asked, user]) == "[user]hi[assistant]read[user]hi"


def test_an_empty_answer_is_left_out_where_it_is_refused(model_dir: Path) -> None:
    turns = load(model_dir, TURNS)
    user, empty = {"role": "user", "content": "u"}, {"role": "assistant", "content": ""}
    assert prompt(turns, [user, empty, user]) == "[user]u\n\nu"
    with pytest.raises(InvalidRequestError, match="turns"):
        prompt(turns, [user, empty])
    assert prompt(load(model_dir, QWEN), [user, empty, user]) == "[user]u[assistant][user]u"


def test_an_empty_list_of_tools_is_for_templates_that_fail_without_one(model_dir: Path) -> None:
    lists = load(model_dir, "{%- for t in tools %}{{ t.function.name }}{%- endfor %}" + LLAMA)
    assert lists.template_needs == TemplateNeeds(lists_no_tools=True, one_call=True, content_apart=True)
    assert prompt(lists, [{"role": "user", "content": "hi"}]) == "[user]hi"
    asks = load(model_dir, "{{ 'none' if tools is none else 'some' }}" + QWEN)
    assert prompt(asks, [{"role": "user", "content": "hi"}]) == "none[user]hi"


def test_instructions_stay_where_they_are_while_tools_are_called(model_dir: Path) -> None:
    """As some of Mistral's, which show them before the last user's message only, and with a result last nowhere."""
    moves = (
        "{%- for m in messages if m.role != 'system' %}[{{ m.role }}]"
        "{%- if loop.last and m.role == 'user' and messages[0].role == 'system' %}"
        "{{ messages[0].content }}|{%- endif %}"
        "{{ m.content }}" + CALLS + "{{ c.function.name }}" + ENDS + "{# tools #}"
    )
    system, (user, *loop) = {"role": "system", "content": "s"}, history("{}")
    moving = load(model_dir, moves)
    assert not moving.template_needs.system_first
    assert prompt(moving, [system, user, *loop]) == "[user]s[user]hi[assistant]read[tool]sunny"
    assert load(model_dir, QWEN).template_needs.system_first


def test_reasoning_is_a_part_of_content_where_that_is_how_it_is_read(model_dir: Path) -> None:
    parts = (
        EACH + "[{{ m.role }}]{%- if m.content is string %}{{ m.content }}{%- else %}{%- for p in m.content %}"
        "{{ '(' + p.thinking + ')' if p.type == 'thinking' else p.text }}{%- endfor %}{%- endif %}"
        + CALLS
        + "{{ c.function.name }}"
        + ENDS
        + "{# tools #}"
    )
    user, asked, result = history("{}")
    asked = {**asked, "content": "I look.", "reasoning_content": "hm"}
    assert prompt(load(model_dir, parts), [user, asked, result]) == "[user]hi[assistant](hm)I look.read[tool]sunny"
    assert prompt(load(model_dir, parts), [user, {**asked, "content": ""}]) == "[user]hi[assistant](hm)read"
    for other in (QWEN, parts.replace("m.content is string", "true"), parts.replace("'('", "m.reasoning + '('")):
        assert not load(model_dir, other).template_needs.thinks_in_parts


@pytest.mark.parametrize(
    ("before", "behind", "around"),
    [("<think>\n", "\n</think>\n\n", "\n\n"), ("<think>", "</think>", ""), ("<think>\n", "\n</think>\n", "\n")],
)
def test_line_breaks_that_the_template_writes_are_not_written_twice(
    model_dir: Path, before: str, behind: str, around: str
) -> None:
    """What the model wrote comes back as it was, also where the template takes nothing away."""
    wrote = f"{before}hm{behind}I look.{around}<tool_call>\n" + '{"name": "read", "arguments": {}}\n</tool_call>'
    reads = (
        EACH
        + "{%- if m.role == 'assistant' %}BEFORE{{ m.reasoning_content }}BEHIND{{ m.content }}AROUND"
        + CALLS
        + "<tool_call>\n{{ '{\"name\": \"' + c.function.name + '\", \"arguments\": ' + c.function.arguments + '}' }}"
        "{{ '\n</tool_call>' }}{%- endfor %}{%- else %}{{ m.content }}{%- endif %}{%- endfor %}{# tools #}"
    )
    for name, value in {"BEFORE": before, "BEHIND": behind, "AROUND": around}.items():
        reads = reads.replace(name, "{{ '" + value.replace("\n", "\\n") + "' }}")
    answer = read(parser("hermes", "qwen3"), [wrote])
    ((name, arguments),) = answer.calls
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    said = {"role": "assistant", "content": answer.content, "reasoning_content": answer.reasoning, "tool_calls": [call]}
    user, result = {"role": "user", "content": "hi"}, {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
    assert prompt(load(model_dir, reads), [user, said, result]) == f"hi{wrote}sunny"


def test_reasoning_stays_where_it_is_shown_when_content_is_apart(model_dir: Path) -> None:
    at_calls = (
        EACH + "{%- if m.tool_calls %}({{ m.reasoning }})" + CALLS + "{{ c.function.name }}{%- endfor %}"
        "{%- else %}[{{ m.role }}]{{ m.content }}{%- endif %}{%- endfor %}{# tools #}"
    )
    user, asked, result = history("{}")
    asked = {**asked, "content": "I look.", "reasoning": "hm"}
    assert prompt(load(model_dir, at_calls), [user, asked, result]) == "[user]hi[assistant]I look.(hm)read[tool]sunny"
    both = at_calls.replace("[{{ m.role }}]", "[{{ m.role }}]({{ m.reasoning }})")
    assert "(hm)I look.()read" in prompt(load(model_dir, both), [user, asked, result])


@pytest.mark.parametrize("mark", ["<|tool_call|>", "<|tool_list_start|>", "<tool_call>"])
def test_calls_that_the_template_does_not_show_are_content(model_dir: Path, mark: str) -> None:
    """In the model's own form: read again, they are the same calls."""
    shows_none = EACH + "[{{ m.role }}]{{ m.content }}{%- endfor %}{# tools MARK #}".replace("MARK", mark)
    calls = [
        {"id": name, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for name, arguments in (("f", {"city": 'é "x"\n', "deep": {"a": [1, None, True]}}), ("other", {}))
    ]
    user, result = {"role": "user", "content": "hi"}, {"role": "tool", "tool_call_id": "f", "content": "sunny"}
    for content in (None, "I look."):
        asked = {"role": "assistant", "content": content, "tool_calls": calls}
        text = prompt(load(model_dir, shows_none), [user, asked, result])
        shown = text.removeprefix("[user]hi[assistant]").removesuffix("[tool]sunny")
        answer = read(parser(answer_format(shows_none).calls or ""), [shown])
        assert answer.content == (content or "")
        assert [(name, json.loads(arguments)) for name, arguments in answer.calls] == [
            (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls
        ]
    assert prompt(load(model_dir, shows_none.replace("tools", "")), [user, asked]).endswith("[assistant]I look.")


OWN = "{%- if m.tool_calls %}<tool_call>{{ m.tool_calls[0].function | tojson }}</tool_call>{%- endif %}"


@pytest.mark.parametrize(
    ("shown", "is_read"),
    [(OWN, True), (OWN.replace("tool_call>", "calling>"), False), ("", True), ("{{ raise_exception('no') }}", None)],
)
def test_a_form_of_calls_that_is_not_known_is_noticed(
    model_dir: Path, shown: str, is_read: bool | None, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load(model_dir, EACH + "{{ m.content }}" + shown + "{%- endfor %}{# tools #}")
    assert reads_own_calls(tokenizer, answer_format(tokenizer.chat_template)) is is_read
    assert reads_own_calls(tokenizer, AnswerFormat(None, None)) is None
    Planner("tiny", 100, tokenizer, GatewaySettings()).warn_of_other_calls()
    assert ("another form than hermes" in caplog.text) == (is_read is False)


def test_objects_are_given_where_the_template_has_a_form_of_its_own_for_them(model_dir: Path) -> None:
    arguments = "{{ c.function.arguments if c.function.arguments is string else c.function.arguments | FORM }}"
    own, json_form, python = (
        load(
            model_dir,
            EACH + "{{ m.content }}" + CALLS + "{{ c.function.name }}" + arguments.replace("FORM", form) + ENDS,
        )
        for form in ("items | join(':')", "tojson", "string")
    )
    user, asked, _ = history('{"a": "x"}')
    assert prompt(own, [user, asked]) == "hiread('a', 'x')"
    for other in (json_form, python):
        assert prompt(other, [user, asked]) == 'hiread{"a": "x"}'


def test_a_template_that_shows_only_objects_is_given_one_whatever_the_model_wrote(model_dir: Path) -> None:
    shows = (
        "{{ c.function.name }}{% if c.function.arguments is mapping %}{{ c.function.arguments | tojson }}{% endif %}"
    )
    user, asked, _ = history('{"a": "x')
    text = prompt(load(model_dir, EACH + "{{ m.content }}" + CALLS + shows + ENDS), [user, asked])
    assert json.loads(text.removeprefix("hiread")) == {"arguments": '{"a": "x'}


def test_what_is_shown_behind_the_call_is_told_before_it(model_dir: Path) -> None:
    """As Gemma's templates, which show what was said behind a call's result."""
    behind = (
        EACH + "[{{ m.role }}]" + CALLS + "{{ c.function.name }}{%- endfor %}{{ m.content }}{%- endfor %}{# tools #}"
    )
    user, asked, result = history("{}")
    text = prompt(load(model_dir, behind), [user, {**asked, "content": "I look."}, result])
    assert text == "[user]hi[assistant]I look.[assistant]read[tool]sunny"


def test_ids_are_filled_in_where_nobody_gave_any(model_dir: Path) -> None:
    ids = (
        EACH + "[{{ m.role }}]{%- if m.role == 'tool' %}{{ m.tool_call_id + '=' }}{%- endif %}{{ m.content }}"
        "{%- for c in m.tool_calls %}({{ c.id + ' ' + c.function.name }})" + ENDS + "{# tools #}"
    )
    calls = [{"type": "function", "function": {"name": name, "arguments": "{}"}} for name in "abc"]
    asked = {"role": "assistant", "content": "", "tool_calls": [calls[0], {**calls[1], "id": "x"}, calls[2]]}
    results = [{"role": "tool", "content": "1", "tool_call_id": "x"}, *({"role": "tool", "content": t} for t in "23")]
    text = prompt(load(model_dir, ids), [{"role": "user", "content": "hi"}, asked, *results])
    assert text == "[user]hi[assistant](call_1_0 a)(x b)(call_1_2 c)[tool]x=1[tool]call_1_0=2[tool]call_1_2=3"


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
