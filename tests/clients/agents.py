"""Coding agents from npm, each told in its own way where the server is and run for one task without a person."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TASK = "Say it with a tool."
Environment = dict[str, str]


@dataclass(frozen=True, slots=True)
class Agent:
    name: str
    package: str
    command: tuple[str, ...]
    prepare: Callable[[Path, Path, str], Environment]  # (a home, the folder to work in, the server's URL)


def _claude(home: Path, work: Path, url: str) -> Environment:
    return {
        "HOME": str(home),
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "sk-none",
        "ANTHROPIC_MODEL": "scripted",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": "scripted",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }


def _codex(home: Path, work: Path, url: str) -> Environment:
    (home / ".codex").mkdir()
    (home / ".codex" / "config.toml").write_text(
        'model = "scripted"\nmodel_provider = "dualpath"\n[model_providers.dualpath]\nname = "DualPath"\n'
        f'base_url = "{url}/v1"\nwire_api = "responses"\n'
    )
    return {"HOME": str(home), "CODEX_HOME": str(home / ".codex")}


def _opencode(home: Path, work: Path, url: str) -> Environment:
    options = {"baseURL": f"{url}/v1", "apiKey": "-"}
    models = {"scripted": {"limit": {"context": 1_000_000, "output": 8192}}}
    config = {
        "model": "dualpath/scripted",
        "small_model": "dualpath/scripted",
        "permission": "allow",
        "provider": {"dualpath": {"npm": "@ai-sdk/openai-compatible", "options": options, "models": models}},
    }
    (work / "opencode.json").write_text(json.dumps(config))
    return {"HOME": str(home)}


def _qwen(home: Path, work: Path, url: str) -> Environment:
    (home / ".qwen").mkdir()
    settings = {"privacy": {"usageStatisticsEnabled": False}, "general": {"enableAutoUpdate": False}}
    (home / ".qwen" / "settings.json").write_text(json.dumps(settings))
    return {"HOME": str(home), "OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "-", "OPENAI_MODEL": "scripted"}


def _pi(home: Path, work: Path, url: str) -> Environment:
    (home / ".pi" / "agent").mkdir(parents=True)
    model = {"id": "scripted", "contextWindow": 1_000_000, "maxTokens": 8192}
    provider = {"baseUrl": f"{url}/v1", "api": "openai-completions", "apiKey": "-", "models": [model]}
    (home / ".pi" / "agent" / "models.json").write_text(json.dumps({"providers": {"dualpath": provider}}))
    return {"HOME": str(home), "PI_OFFLINE": "1"}


AGENTS = (
    Agent("claude_code", "@anthropic-ai/claude-code", ("claude", "-p", TASK, "--allowedTools", "Bash"), _claude),
    Agent(
        "codex",
        "@openai/codex",
        ("codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", TASK),
        _codex,
    ),
    Agent("opencode", "opencode-ai", ("opencode", "run", TASK), _opencode),
    Agent("qwen_code", "@qwen-code/qwen-code", ("qwen", "-p", TASK, "--yolo", "--auth-type", "openai"), _qwen),
    Agent(
        "pi",
        "@mariozechner/pi-coding-agent",
        ("pi", "-p", TASK, "--provider", "dualpath", "--model", "scripted"),
        _pi,
    ),
)
