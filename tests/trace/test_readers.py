"""Recordings become trajectories: which requests belong together, and what an infinite cache would hit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dualpath.core.errors import ConfigError
from dualpath.trace import infinite_cache_hits, prompt_tokens, read_trace, write_trajectories
from dualpath.trace.read import detect_format

REAL = Path(__file__).parents[3] / "shared" / "traces"


def row(time_ms: int, prompt: int, generate: int, blocks: list[int]) -> str:
    return json.dumps({"timestamp": time_ms, "input_length": prompt, "output_length": generate, "hash_ids": blocks})


def mooncake(path: Path, *rows: str) -> Path:
    path.write_text("".join(one + "\n" for one in rows))
    return path


def lengths(path: Path) -> list[list[tuple[int, int]]]:
    return [[(r.append_tokens, r.generate_tokens) for r in one.rounds] for one in read_trace(path).trajectories]


def test_mooncake_rows_that_extend_a_prompt_are_one_conversation(tmp_path: Path) -> None:
    path = mooncake(
        tmp_path / "m.jsonl",
        row(1000, 1100, 100, [1, 2, 3]),
        row(3500, 1700, 50, [1, 2, 4, 5]),  # the partial block 3 became 4
        row(4000, 600, 10, [9, 10]),
        row(6000, 2100, 1, [1, 2, 4, 6, 7]),
    )
    assert detect_format(path) == "mooncake"
    assert lengths(path) == [[(1100, 100), (500, 50), (350, 1)], [(600, 10)]]
    first, second = read_trace(path).trajectories
    assert [one.think_s for one in first.rounds] == [0.0, 2.5, 2.5]
    assert (first.start_s, second.start_s) == (0.0, 3.0)


def test_mooncake_branches_and_shared_prompts_are_no_continuation(tmp_path: Path) -> None:
    path = mooncake(
        tmp_path / "m.jsonl",
        row(0, 600, 10, [1, 2]),
        row(1, 700, 10, [1, 3]),  # continues: block 1 was the first row's alone
        row(2, 800, 10, [1, 4]),  # the first row was continued already
        row(3, 800, 900, [1, 5]),
        row(4, 820, 10, [1, 6]),
    )
    assert [len(one) for one in lengths(path)] == [2, 1, 1, 1]
    shared = [one.prefix.num_tokens for one in read_trace(path).trajectories if one.prefix]
    assert shared == [512] * 4
    assert read_trace(path).block_rate == pytest.approx(4 / 10)


def test_mooncake_needs_room_for_what_was_generated(tmp_path: Path) -> None:
    path = mooncake(tmp_path / "m.jsonl", row(0, 1024, 500, [1, 2]), row(1, 1500, 5, [1, 2, 3]))
    assert len(lengths(path)) == 2


def request(t: float, prompt: int, generate: int, blocks: list[int], **more: Any) -> dict[str, Any]:
    return {"t": t, "type": "n", "in": prompt, "out": generate, "hash_ids": blocks} | more


def claude(path: Path, requests: list[dict[str, Any]], **more: Any) -> Path:
    head = {"id": path.stem, "block_size": 64, "hash_id_scope": "local", "tool_tokens": 128, "system_tokens": 64}
    path.write_text(json.dumps(head | {"requests": requests} | more))
    return path


def span(count: int, start: int = 1) -> list[int]:
    return list(range(start, start + count))


def test_claude_code_rounds_keep_recorded_prompt_lengths(tmp_path: Path) -> None:
    path = claude(
        tmp_path / "c.json",
        [
            request(0, 640, 100, span(10), api_time=4.0, think_time=0.0),
            request(9, 700, 50, span(10), api_time=1.0),  # thinking was not sent back: 640 + 100 > 700
            request(20, 1000, 7, span(15), think_time=2.5),
        ],
    )
    assert detect_format(path) == "claude-code"
    assert lengths(path) == [[(640, 100), (1, 50), (209, 7)]]
    (one,) = read_trace(path).trajectories
    assert [turn.think_s for turn in one.rounds] == [0.0, 5.0, 2.5]
    assert one.prefix is not None
    assert (one.prefix.tool_tokens, one.prefix.system_tokens) == (128, 64)


def test_claude_code_compaction_begins_a_trajectory(tmp_path: Path) -> None:
    requests = [request(0, 6400, 10, span(100)), request(50, 1280, 10, [1, 2, 3, *span(17, 500)])]
    first, second = read_trace(claude(tmp_path / "c.json", requests)).trajectories
    assert (second.id, second.parent, second.start_s) == ("c#1", "c", 50.0)
    assert second.prefix == first.prefix
    lost = [request(0, 6400, 10, span(100)), request(50, 1280, 10, [1, *span(19, 500)])]
    cut = read_trace(claude(tmp_path / "d.json", lost)).trajectories[1].prefix
    assert cut is not None
    assert (cut.tool_tokens, cut.system_tokens) == (64, 0)


def test_claude_code_subagents_are_trajectories_of_their_own(tmp_path: Path) -> None:
    inner = {
        "t": 10.0,
        "type": "subagent",
        "agent_id": "x",
        "tool_tokens": 64,
        "system_tokens": 0,
        "requests": [request(0, 200, 5, span(3, 900)), request(3, 300, 5, span(4, 900), think_time=1.0)],
    }
    path = claude(tmp_path / "c.json", [request(0, 640, 100, span(10)), inner, request(30, 900, 5, span(14))])
    main, sub = read_trace(path).trajectories
    assert (sub.id, sub.parent, sub.start_s, len(sub.rounds)) == ("c/x", "c", 10.0, 2)
    assert len(main.rounds) == 2


def test_directories_share_prefixes_across_files(tmp_path: Path) -> None:
    for name in "ab":
        claude(tmp_path / f"{name}.json", [request(0, 640, 5, span(10))])
    (tmp_path / "README.md").write_text("not a trace")
    recording = read_trace(tmp_path)
    assert recording.block_rate == pytest.approx(3 / 20)  # 128 + 64 tokens of the second file
    assert infinite_cache_hits(recording.trajectories).block_rate == pytest.approx(recording.block_rate)
    first, second = (prompt_tokens(one, 0, seed=0, vocab=range(9, 10**6)) for one in recording.trajectories)
    assert first[:192] == second[:192]
    assert first[192:200] != second[192:200]


def test_what_was_converted_is_read_again(tmp_path: Path) -> None:
    source = claude(tmp_path / "c.json", [request(0, 640, 5, span(10))])
    write_trajectories(tmp_path / "t.jsonl", read_trace(source).trajectories)
    assert detect_format(tmp_path / "t.jsonl") == "trajectories"
    assert read_trace(tmp_path / "t.jsonl").trajectories == read_trace(source).trajectories


WRONG = [
    ("", "the file is empty"),
    ("hello\n", ":1: no known trace format"),
    ("[1]\n", ":1: no known trace format"),
    ('{"a": 1}\n', ":1: no known trace format"),
    ('{\n "a": 1}', "no known trace format"),
    ('{"requests": []}', "hash_id_scope must be 'local'"),
    ("{\n 7", "not JSON"),
    (row(0, 512, 1, [1]) + "\n" + row(0, 513, 1, [1]) + "\n", ":2: 513 tokens are 2 blocks of 512, hash_ids has 1"),
    (row(0, 512, 1, [1]).replace("512", '"x"') + "\n", ":1: input_length must be a whole number"),
    (row(0, 512, 1, [1]).replace("[1]", "[1.5]") + "\n", ":1: hash_ids must hold whole numbers"),
]


@pytest.mark.parametrize(("content", "reason"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_no_trace_is_one_line(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_trace(path)
    assert reason in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_a_wrong_request_and_an_empty_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \.json or \.jsonl file"):
        read_trace(tmp_path)
    path = claude(tmp_path / "c.json", [request(0, 640, 5, span(10)), {"t": 1}])
    with pytest.raises(ConfigError, match=r"c\.json: requests\[1\]: in is missing"):
        read_trace(path)
    with pytest.raises(ConfigError, match="the conversation has no requests"):
        read_trace(claude(path, []))


@pytest.mark.skipif(not REAL.is_dir(), reason="the public recordings are not beside this repository")
def test_real_claude_code_traces_keep_their_hit_rate() -> None:
    recording = read_trace(REAL / "claude-code")
    assert sum(len(one.rounds) for one in recording.trajectories) == len(recording.requests) == 1158
    assert sum(one.parent is None for one in recording.trajectories) == 47
    assert recording.block_rate is not None
    rebuilt = infinite_cache_hits(recording.trajectories, block_tokens=64).block_rate
    assert rebuilt == pytest.approx(recording.block_rate, abs=0.01)


@pytest.mark.skipif(not REAL.is_dir(), reason="the public recordings are not beside this repository")
def test_real_mooncake_trace_is_read_whole() -> None:
    recording = read_trace(REAL / "mooncake_conversation_trace.jsonl")
    assert sum(len(one.rounds) for one in recording.trajectories) == 12031
    assert recording.block_rate == pytest.approx(0.366, abs=0.001)
    rebuilt = infinite_cache_hits(recording.trajectories, block_tokens=512).block_rate
    assert 0.25 < rebuilt <= recording.block_rate  # what branches share is lost
