"""A model that follows a script, behind the real gateway: it calls a tool that it knows, then says what it has found.

So agents and SDKs can be run against the server as they come, without a model that is able to.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from tests.gateway.fakes import EOS_ID, FakeBackend

from dualpath.core.request import Request, TokenEvent

HELLO = "Hello from DualPath."
PERSON = {"name": "Ada", "age": 36}
SAY = "echo dualpath-was-here"
# What clients call their tools, and arguments that these take.
CALLS: dict[str, dict[str, Any]] = {
    "add": {"a": 2, "b": 3},
    "Bash": {"command": SAY, "description": "Say it"},
    "bash": {"command": SAY, "description": "Say it"},
    "exec_command": {"cmd": SAY},
    "shell": {"command": ["sh", "-c", SAY]},
    "shell_command": {"command": SAY},
    "run_shell_command": {"command": SAY, "description": "Say it", "is_background": False},
}
LISTING = "hello.txt\n```\ndualpath-was-here\n```\n"  # a whole file, in the form that aider asks for
PERSONS = {"Person", "final_result", "json", "person"}  # tools that are a way to ask for a person
_TOOL = re.compile(r'"name": "([^"]+)"')


@dataclass
class ScriptedModel(FakeBackend):
    """Prompts that begin as earlier ones did count as hits, as with a cache that forgets nothing."""

    max_context_tokens: int = 1 << 20
    seen: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.script = lambda request: [*answer(_text(request.prompt_token_ids), request).encode(), EOS_ID]

    async def _stream(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        while self.control.is_paused:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        prompt = _packed(request.prompt_token_ids)
        self.num_hit_tokens = max((_common(prompt, other) for other in self.seen), default=0)
        self.seen.append(prompt + _packed(self.script(request)))
        async for event in super()._stream(request):
            yield event


def answer(prompt: str, request: Request) -> str:
    last = prompt.split("<|im_start|>user")[-1]
    tools = _TOOL.findall(prompt.split("<|im_start|>user")[0])
    if "Observation:" in last:  # smolagents tells results as text
        last = last.replace("Observation:", "<tool_response>")
    if "<tool_response>" in last:
        found = last.split("<tool_response>")[1].split("</tool_response>")[0].split("<|im_end|>")[0]
        if "final_answer" in tools:  # smolagents' way to end
            return _call("final_answer", {"answer": found.strip()})
        return f"It says: {found.strip()[:2000]}"
    if "*file listing*" in prompt:
        return LISTING
    for name in tools:
        if name in PERSONS:
            return _call(name, PERSON)
        if name.rpartition("__")[2] in CALLS:
            return _call(name, CALLS[name.rpartition("__")[2]])
    wants_json = request.sampling.grammar or "json" in prompt.lower()
    return json.dumps(PERSON) if wants_json else HELLO


def _call(name: str, arguments: dict[str, Any]) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def _text(token_ids: Any) -> str:
    names = {256: b"<|im_start|>", EOS_ID: b"<|im_end|>"}
    return b"".join(names.get(i, bytes([i % 256])) for i in token_ids).decode("utf-8", "replace")


def _packed(token_ids: Any) -> bytes:
    return b"".join(int(i).to_bytes(2, "little") for i in token_ids)


def _common(first: bytes, second: bytes) -> int:
    """How many tokens both begin with."""
    low, high = 0, min(len(first), len(second)) // 2
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[: 2 * middle] == second[: 2 * middle] else (low, middle - 1)
    return low
