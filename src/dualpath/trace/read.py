"""Read a trace of any known format, recognised by its content: a file, or all files of a directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dualpath.trace.claude_code as claude_code
import dualpath.trace.mooncake as mooncake
from dualpath.core.errors import ConfigError
from dualpath.trace.recording import BlockName, Recording
from dualpath.trace.trajectory import Trajectory, numbered_lines, read_trajectories

SUFFIXES = (".json", ".jsonl")
KINDS = "known are trajectories, Mooncake traces and Claude-Code traces"


def read_trace(path: Path | str) -> Recording:
    """``path``: a file, or a directory whose .json and .jsonl files are all read (not those of folders in it)."""
    path = Path(path)
    if not path.is_dir():
        return _read_file(path)
    files = sorted(one for one in path.iterdir() if one.suffix in SUFFIXES and one.is_file())
    if not files:
        raise ConfigError(f"{path}: no .json or .jsonl file in this directory")
    return _together([(one, _read_file(one)) for one in files])


def detect_format(path: Path) -> str:
    """``trajectories``, ``mooncake`` or ``claude-code``; ConfigError when it is none of them."""
    first = next(numbered_lines(path), None)
    if first is None:
        raise ConfigError(f"{path}: the file is empty")
    try:
        fields = json.loads(first[1])
    except (ValueError, RecursionError):
        fields = None  # an object over several lines: only conversations are written that way
    if isinstance(fields, dict):
        if "rounds" in fields:
            return "trajectories"
        if "input_length" in fields:
            return "mooncake"
        if "requests" not in fields:
            raise ConfigError(f"{path}:{first[0]}: no known trace format ({KINDS})")
        return "claude-code"
    if fields is None and first[1].strip() == "{":
        return "claude-code"
    raise ConfigError(f"{path}:{first[0]}: no known trace format ({KINDS})")


def _read_trajectories(path: Path) -> Recording:
    return Recording(tuple(read_trajectories(path)))


READERS: dict[str, Callable[[Path], Recording]] = {
    "trajectories": _read_trajectories,
    "mooncake": mooncake.read,
    "claude-code": claude_code.read,
}


def _read_file(path: Path) -> Recording:
    return READERS[detect_format(path)](path)


def _together(parts: list[tuple[Path, Recording]]) -> Recording:
    """Ids must differ between files; block ids are meant across them."""
    sources: dict[str, Path] = {}
    trajectories: list[Trajectory] = []
    for path, part in parts:
        for one in part.trajectories:
            if one.id in sources:
                raise ConfigError(f"{path}: the id {one.id!r} is in {sources[one.id]} too")
            sources[one.id] = path
            trajectories.append(one)
    requests: list[list[BlockName]] = [blocks for _, part in parts for blocks in part.requests]
    recording = Recording(tuple(trajectories), tuple(requests), parts[0][1].block_tokens)
    if any(part.block_tokens != recording.block_tokens for _, part in parts):
        return replace(recording, requests=(), block_tokens=None)
    return recording
