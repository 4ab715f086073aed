"""Mooncake traces: one request a line, no conversations; they are rebuilt from the ids of the prompts' blocks.

A row continues an earlier one if its blocks begin with all whole blocks of the earlier prompt, and if it has room for
what that one generated and at least one new token. The longest match wins, then the latest. A match proves nothing if
other rows have that last block too: then it is a shared prompt. Each row is continued once: of two that branch, the
second begins a trajectory of its own, as does every row without a match.

The first block, when trajectories have it in common, is declared as a shared prefix. What branches share beyond it is
lost: compare ``Recording.block_rate`` with the trajectories' own hit rate. The trace has no service times, so
``think_s`` is the time between two rows' timestamps.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dualpath.core.errors import ConfigError
from dualpath.trace import fields as check
from dualpath.trace.recording import Call, Recording, located, rounds_of
from dualpath.trace.trajectory import Prefix, Trajectory, numbered_lines

BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Row:
    time_s: float
    prompt_tokens: int
    generate_tokens: int
    blocks: list[int]  # the last one may be partial

    @property
    def num_whole(self) -> int:
        return self.prompt_tokens // BLOCK_TOKENS


@dataclass(slots=True)
class _Conversations:
    """Built row by row. An id stands for its whole prefix, so one id compared is a prefix compared."""

    rows: list[list[Row]] = field(default_factory=list)
    open_ends: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # (place, id) of the last whole block
    uses: Counter[int] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        number = self._continued_by(row)
        if number is None:
            number = len(self.rows)
            self.rows.append([])
        self.rows[number].append(row)
        self.uses.update(row.blocks)
        if row.num_whole:
            end = (row.num_whole - 1, row.blocks[row.num_whole - 1])
            self.open_ends.setdefault(end, []).append(number)

    def _continued_by(self, row: Row) -> int | None:
        for end in reversed(list(enumerate(row.blocks))):
            candidates = self.open_ends.get(end, [])
            for number in reversed(candidates):
                last = self.rows[number][-1]
                if self.uses[end[1]] == 1 and row.prompt_tokens > last.prompt_tokens + last.generate_tokens:
                    candidates.remove(number)
                    return number
        return None


def read(path: Path) -> Recording:
    rows = [located(f"{path}:{number}", _parse, line) for number, line in numbered_lines(path)]
    rows.sort(key=lambda row: row.time_s)  # stable: rows of one instant keep their order
    conversations = _Conversations()
    for row in rows:
        conversations.add(row)
    first_uses = Counter(one[0].blocks[0] for one in conversations.rows if one[0].num_whole)
    origin_s = rows[0].time_s if rows else 0.0
    return Recording(
        trajectories=tuple(
            _trajectory(f"{path.stem}-{number}", one, first_uses, origin_s)
            for number, one in enumerate(conversations.rows)
        ),
        requests=tuple([(block,) for block in row.blocks] for row in rows),
        block_tokens=BLOCK_TOKENS,
    )


def _parse(line: str) -> Row:
    fields = check.parse_object(line)
    row = Row(
        time_s=check.seconds(fields, "timestamp") / 1000,
        prompt_tokens=check.integer(fields, "input_length", least=1),
        generate_tokens=check.integer(fields, "output_length", least=0),
        blocks=check.block_ids(fields),
    )
    expected = -(-row.prompt_tokens // BLOCK_TOKENS)
    if len(row.blocks) != expected:
        raise ConfigError(
            f"{row.prompt_tokens} tokens are {expected} blocks of {BLOCK_TOKENS}, hash_ids has {len(row.blocks)}"
        )
    return row


def _trajectory(name: str, rows: list[Row], first_uses: Counter[int], origin_s: float) -> Trajectory:
    before_s = [rows[0].time_s, *(row.time_s for row in rows)]
    calls = [
        Call(row.prompt_tokens, row.generate_tokens, row.time_s - last_s)
        for row, last_s in zip(rows, before_s, strict=False)
    ]
    first, prefix = rows[0].blocks[0], None
    if first_uses[first] > 1 and rows[0].num_whole:
        prefix = Prefix(tool_tokens=0, system_tokens=BLOCK_TOKENS, group=f"mooncake-{first}")
    return Trajectory(name, rounds_of(calls), prefix, start_s=rows[0].time_s - origin_s)
