"""Claude-Code traces: one conversation a file, prompts as ids of 64-token blocks that mean something in that file only.

* A request continues the run of requests whose latest prompt it keeps at least KEPT_SHARE of, from the front. Otherwise
  the context was compacted or replaced: a trajectory of its own begins, ``parent`` naming the conversation's first.
* A subagent is a trajectory of its own too; ``parent`` names the conversation, and its requests' times, which count
  from its start, are moved. Replay does not make parents wait for them: their recorded ``think_s`` contains that.
* Tools and system prompt come first in a prompt. Conversations with equal ``tool_tokens`` are taken to share the tools,
  and those with equal ``system_tokens`` besides the system prompt; the files name sizes only.

``think_s`` is the recorded ``think_time``; where it is missing, what remains between two requests after ``api_time``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from dualpath.core.errors import ConfigError
from dualpath.trace import fields as check
from dualpath.trace.recording import BlockName, Call, Recording, located, rounds_of
from dualpath.trace.trajectory import Prefix, Trajectory

KEPT_SHARE = 0.9
SUBAGENT = "subagent"


@dataclass(frozen=True, slots=True)
class _Request:
    start_s: float
    call: Call
    blocks: list[int]


@dataclass(slots=True)
class _Talk:
    """A conversation or a subagent's part of one: its own tools and system prompt, its own requests."""

    name: str
    tool_tokens: int
    system_tokens: int
    block_tokens: int
    parent: str | None
    requests: list[_Request] = field(default_factory=list)

    def block_names(self, request: _Request) -> list[BlockName]:
        """Global names: whole blocks of tools and system prompt by what they are, the rest by file and id."""
        tools, both = self.tool_tokens, self.tool_tokens + self.system_tokens
        names: list[BlockName] = []
        for place, block in enumerate(request.blocks):
            end = (place + 1) * self.block_tokens
            if end <= tools:
                names.append(("tools", tools, place))
            elif end <= both:
                names.append(("system", tools, self.system_tokens, place))
            else:
                names.append(((self.parent or self.name), block))
        return names


def read(path: Path) -> Recording:
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    talks = located(path, _parse, content)
    timed = [(one.start_s, talk.block_names(one)) for talk in talks for one in talk.requests]
    return Recording(
        trajectories=tuple(one for talk in talks for one in _trajectories(talk)),
        requests=tuple(names for _, names in sorted(timed, key=lambda pair: pair[0])),
        block_tokens=talks[0].block_tokens,
    )


def _parse(content: str) -> list[_Talk]:
    fields = check.parse_object(content)
    if "requests" not in fields:
        raise ConfigError("no known trace format: a JSON object without 'requests'")
    if fields.get("hash_id_scope") != "local":
        raise ConfigError(f"hash_id_scope must be 'local', not {fields.get('hash_id_scope')!r}")
    name, block_tokens = check.text(fields, "id"), check.integer(fields, "block_size", least=1)
    return _parse_talk(fields, name, block_tokens, offset_s=0.0, parent=None)


def _parse_talk(
    fields: dict[str, Any], name: str, block_tokens: int, *, offset_s: float, parent: str | None
) -> list[_Talk]:
    """The talk, and those of its subagents. One without requests is left out."""
    tools, system = check.integer(fields, "tool_tokens", least=0), check.integer(fields, "system_tokens", least=0)
    talk, inner = _Talk(name, tools, system, block_tokens, parent), []
    free_s = 0.0  # when the latest request was answered, as far as known
    for number, entry in enumerate(check.array(fields, "requests")):
        try:
            one = check.as_object(entry, "a request")
            start_s = offset_s + check.seconds(one, "t")
            if one.get("type") == SUBAGENT:
                inner_name = f"{name}/{check.text(one, 'agent_id')}"
                inner += _parse_talk(one, inner_name, block_tokens, offset_s=start_s, parent=parent or name)
                continue
            idle_s = max(0.0, start_s - free_s) if talk.requests else 0.0
            talk.requests.append(_parse_request(one, start_s, idle_s))
            free_s = start_s + check.seconds(one, "api_time")
        except ConfigError as error:
            raise ConfigError(f"requests[{number}]: {error}") from None
    if parent is None and not talk.requests:
        raise ConfigError("the conversation has no requests")
    return [talk, *inner] if talk.requests else inner


def _parse_request(fields: dict[str, Any], start_s: float, idle_s: float) -> _Request:
    call = Call(
        prompt_tokens=check.integer(fields, "in", least=1),
        generate_tokens=check.integer(fields, "out", least=0),
        think_s=check.seconds(fields, "think_time", default_s=idle_s),
    )
    return _Request(start_s, call, check.block_ids(fields))


def _trajectories(talk: _Talk) -> list[Trajectory]:
    runs: list[list[_Request]] = []
    for request in talk.requests:
        kept = [run for run in runs if _common(run[-1].blocks, request.blocks) >= KEPT_SHARE * len(run[-1].blocks)]
        if kept:
            max(kept, key=lambda run: len(run[-1].blocks)).append(request)
        else:
            runs.append([request])
    return [_trajectory(talk, number, run, runs[0][0]) for number, run in enumerate(runs)]


def _trajectory(talk: _Talk, number: int, run: list[_Request], first: _Request) -> Trajectory:
    """Run 0 is the talk itself. A later run shares of tools and system prompt what its first prompt really kept."""
    shared = min(talk.tool_tokens + talk.system_tokens, run[0].call.prompt_tokens)
    if number:
        shared = min(shared, _common(first.blocks, run[0].blocks) * talk.block_tokens)
    tools = min(talk.tool_tokens, shared)
    prefix = Prefix(tools, shared - tools, f"claude-code-{talk.tool_tokens}/{talk.system_tokens}")
    return Trajectory(
        id=f"{talk.name}#{number}" if number else talk.name,
        rounds=rounds_of(one.call for one in run),
        prefix=prefix if shared else None,
        start_s=run[0].start_s,
        parent=(talk.parent or talk.name) if number or talk.parent else None,
    )


def _common(one: list[int], other: list[int]) -> int:
    """Blocks that both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
