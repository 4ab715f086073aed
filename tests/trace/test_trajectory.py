"""The format: what is written is read back, and what is wrong is one line with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath.core.errors import ConfigError
from dualpath.trace import Prefix, Round, Trajectory, prompt_tokens, read_trajectories, write_trajectories
from dualpath.trace.trajectory import dump_trajectory, parse_trajectory

VOCAB = range(100, 1100)
ROUND = {"append_tokens": 3, "generate_tokens": 2}
WRONG = [
    ("{", "not JSON"),
    ("[]", "must be an object, not list"),
    ('{"rounds": []}', "id is missing"),
    ('{"id": "a", "rounds": []}', "at least one round"),
    ('{"id": "a"}', "rounds is missing"),
    ('{"id": 7, "rounds": []}', "id must be a non-empty string, not 7"),
    ('{"id": "a", "rounds": 3}', "rounds must be a list, not int"),
    (json.dumps({"id": "a", "rounds": [ROUND, {"append_tokens": 1}]}), "rounds[1]: generate_tokens is missing"),
    (json.dumps({"id": "a", "rounds": [ROUND | {"append_tokens": 0}]}), "rounds[0]: append_tokens must be a whole"),
    (json.dumps({"id": "a", "rounds": [ROUND | {"append_tokens": True}]}), "append_tokens must be a whole number"),
    (json.dumps({"id": "a", "rounds": [ROUND | {"think_s": float("nan")}]}), "think_s must be a finite number"),
    (json.dumps({"id": "a", "rounds": [ROUND | {"think": 1}]}), "rounds[0]: unknown field 'think'"),
    (json.dumps({"id": "a", "rounds": [ROUND], "prefix": {"group": "g"}}), "prefix: tool_tokens is missing"),
    (
        json.dumps({"id": "a", "rounds": [ROUND], "prefix": {"group": "g", "tool_tokens": 3, "system_tokens": 1}}),
        "the prefix's 4 tokens do not fit",
    ),
]


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    lengths = st.integers(1, 10**6)
    think = st.floats(0, 1e6)
    rounds = tuple(draw(st.lists(st.builds(Round, lengths, lengths, think), min_size=1, max_size=5)))
    tools = draw(st.integers(0, rounds[0].append_tokens))
    system = draw(st.integers(0, rounds[0].append_tokens - tools))
    prefix = draw(st.sampled_from([None, Prefix(tools, system, "g/1")]))
    name = st.text(min_size=1).filter(lambda text: text.isprintable())
    return Trajectory(draw(name), rounds, prefix, draw(think), draw(st.none() | name))


@given(trajectories())
def test_a_trajectory_survives_its_json(one: Trajectory) -> None:
    assert parse_trajectory(json.loads(json.dumps(dump_trajectory(one)))) == one


def test_a_file_survives_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [Trajectory(name, (Round(5, 1, 0.25),)) for name in ("b", "a", "é")]
    write_trajectories(path, rows)
    path.write_text(path.read_text().replace("\n", "\n\n", 1))  # blank lines are no lines
    assert read_trajectories(path) == rows


@pytest.mark.parametrize(("line", "reason"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_line_is_reported_with_its_place(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"id": "ok", "rounds": [ROUND]}) + "\n\n" + line + "\n")
    with pytest.raises(ConfigError) as caught:
        read_trajectories(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ")
    assert reason in message
    assert "\n" not in message


def test_an_id_may_be_there_once(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text((json.dumps({"id": "a", "rounds": [ROUND]}) + "\n") * 2)
    with pytest.raises(ConfigError, match=r":2: the id 'a' is there twice"):
        read_trajectories(path)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    binary = tmp_path / "b.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, reason in ((tmp_path / "no", "No such file"), (tmp_path, "directory"), (binary, "UTF-8")):
        with pytest.raises(ConfigError, match=reason):
            read_trajectories(path)
    with pytest.raises(ConfigError, match="No such file"):
        write_trajectories(tmp_path / "no" / "t.jsonl", [])


def agent(name: str, group: str | None = None, tools: int = 40, system: int = 20) -> Trajectory:
    return Trajectory(name, (Round(100, 5), Round(30, 5)), Prefix(tools, system, group) if group else None)


def test_tokens_are_the_same_in_every_replay() -> None:
    first, again = (prompt_tokens(agent("a", "g"), 0, seed=3, vocab=VOCAB) for _ in range(2))
    assert first == again
    assert len(first) == 100
    assert set(first) <= set(VOCAB)
    assert first != prompt_tokens(agent("a", "g"), 0, seed=4, vocab=VOCAB)
    assert len(prompt_tokens(agent("a", "g"), 1, seed=3, vocab=VOCAB)) == 30


def test_token_ids_are_pinned() -> None:
    """A benchmark's tokens must not change under it."""
    assert prompt_tokens(agent("a"), 1, seed=0, vocab=VOCAB)[:4] == [964, 109, 970, 263]


def common(one: Trajectory, other: Trajectory) -> int:
    pair = [prompt_tokens(each, 0, seed=1, vocab=range(1, 1_000_000)) for each in (one, other)]
    return next((i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), 100)


def test_agents_share_what_they_declare_and_nothing_else() -> None:
    assert common(agent("a"), agent("b")) == 0
    assert common(agent("a", "g"), agent("b", "h")) == 0
    assert common(agent("a", "g"), agent("b", "g")) == 60
    assert common(agent("a", "g/1"), agent("b", "g/2")) == 40
    assert common(agent("a", "g"), agent("b", "g", tools=30, system=0)) == 30
    assert common(agent("a"), agent("b", "g")) == 0


def test_a_vocabulary_needs_two_ids() -> None:
    with pytest.raises(ConfigError, match="at least two ids"):
        prompt_tokens(agent("a"), 0, seed=0, vocab=range(5, 6))
