"""From Anthropic's body to the chat body that every API's answer is planned from."""

from __future__ import annotations

from typing import Any, ClassVar

from dualpath.gateway.anthropic.blocks import call_of, result_text, text_of, user_text
from dualpath.gateway.anthropic.bodies import CountBody, MessagesBody
from dualpath.gateway.errors import invalid
from dualpath.gateway.openai.bodies import ChatBody

# Claude Code's first system block: it has a hash of the conversation, so no two conversations would share a prompt.
_BILLING = "x-anthropic-billing-header"
_ROLES = ("user", "assistant", "system")
# What only Anthropic's servers can read, or need: it is in no prompt there either.
_LEFT_OUT = ("redacted_thinking", "fallback", "mcp_tool_listing")
_EFFORTS = {"xhigh": "high", "max": "high"}


class _Conversation(ChatBody, kw_only=True):
    """None asks for no answer: the prompt is computed and kept, and the next request finds it."""

    MIN_MAX_TOKENS: ClassVar[int] = 0


def chat_body(body: CountBody) -> ChatBody:
    """Raises InvalidRequestError for what the model cannot be shown."""
    messages = _system(body) + [
        turn for i, message in enumerate(body.messages) for turn in _turns(message, f"messages.{i}")
    ]
    chat = _Conversation(messages=messages, model=body.model)
    _choose_tools(chat, body)
    _think(chat, body)
    # An answer that has begun is continued.
    last = body.messages[-1] if body.messages else {}
    if last.get("role") == "assistant" and "tool_calls" not in messages[-1] and messages[-1].get("content"):
        chat.continue_final_message, chat.add_generation_prompt = True, False
    if isinstance(body, MessagesBody):
        chat.max_tokens, chat.stream, chat.stop = body.max_tokens, body.stream, body.stop_sequences
        for name in ("temperature", "top_p", "top_k", "min_p", "seed", "ignore_eos", "cache_salt"):
            setattr(chat, name, getattr(body, name))
    return chat


def _system(body: CountBody) -> list[dict[str, Any]]:
    if body.system is None or isinstance(body.system, str):
        text = body.system or ""
    else:
        texts = [user_text(block, f"system.{i}") for i, block in enumerate(body.system)]
        text = "\n".join(text for text in texts if not text.startswith(_BILLING))
    return [{"role": "system", "content": text}] if text else []


def _turns(message: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """A message, as one or several of the chat API: there results are messages of their own."""
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise invalid(f"{where}.role must be one of {', '.join(_ROLES)}", f"{where}.role")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise invalid(f"{where}.content must be a string or an array of blocks", f"{where}.content")
    turns: list[dict[str, Any]] = []
    for i, block in enumerate(content):
        if not isinstance(block, dict):
            raise invalid(f"{where}.content.{i} must be an object", f"{where}.content.{i}")
        _add_block(turns, str(role), block, f"{where}.content.{i}")
    return turns or [{"role": role, "content": ""}]


def _add_block(turns: list[dict[str, Any]], role: str, block: dict[str, Any], where: str) -> None:
    kind = str(block.get("type"))
    if kind.endswith("tool_result"):  # those of Anthropic's own tools stand between an assistant's blocks
        result = {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": result_text(block, where)}
        turns.append(result)
        return
    if not turns or turns[-1]["role"] != role:
        turns.append({"role": role, "content": ""})
    turn = turns[-1]
    if role != "assistant":
        text = user_text(block, where)
        turn["content"] += ("\n" if turn["content"] else "") + text
    elif kind.endswith("tool_use"):
        turn.setdefault("tool_calls", []).append(call_of(block, where))
    elif kind == "thinking":
        turn["reasoning_content"] = turn.get("reasoning_content", "") + text_of(block, where, "thinking")
    elif kind == "compaction":
        turn["content"] += text_of(block, where, "content") if block.get("content") else ""
    elif kind not in _LEFT_OUT:
        turn["content"] += user_text(block, where)


def _choose_tools(chat: ChatBody, body: CountBody) -> None:
    tools = [tool for i, given in enumerate(body.tools or []) if (tool := _tool(given, f"tools.{i}"))]
    chat.tools = tools or None
    choice = body.tool_choice
    if choice is None or (choice.type in ("auto", "none") and not tools):
        return
    if choice.type == "tool":
        if not any(tool["function"]["name"] == choice.name for tool in tools):
            raise invalid(f"tool_choice.name: there is no tool {choice.name!r}", "tool_choice.name")
        chat.tool_choice = {"type": "function", "function": {"name": choice.name}}
    else:
        chat.tool_choice = "required" if choice.type == "any" else choice.type
    chat.parallel_tool_calls = not choice.disable_parallel_tool_use


def _tool(given: dict[str, Any], where: str) -> dict[str, Any] | None:
    """A tool as the chat API has it; None for Anthropic's own, which are not served: the model does without."""
    if "input_schema" not in given and given.get("type") not in (None, "custom"):
        return None
    function = {"name": text_of(given, where, "name")}
    if given.get("description") is not None:
        function["description"] = text_of(given, where, "description")
    schema = given.get("input_schema")
    if not isinstance(schema, dict):
        raise invalid(f"{where}.input_schema must be an object", f"{where}.input_schema")
    strict = {"strict": True} if given.get("strict") is True else {}
    return {"type": "function", "function": {**function, "parameters": schema, **strict}}


def _think(chat: ChatBody, body: CountBody) -> None:
    """Whether to reason goes to the template by the names that templates have for it."""
    kwargs: dict[str, Any] = {}
    if body.thinking is not None:
        kwargs = dict.fromkeys(("enable_thinking", "thinking"), body.thinking.type != "disabled")
    chat.chat_template_kwargs = kwargs | (body.chat_template_kwargs or {}) or None
    output = body.output_config
    if output is not None and output.effort:
        chat.reasoning_effort = _EFFORTS.get(output.effort, output.effort)
    wanted = (output.format if output is not None else None) or body.output_format
    if wanted is not None:
        schema = {"name": "answer", "schema": wanted.get("schema")}
        chat.response_format = {"type": wanted.get("type"), "json_schema": schema}
