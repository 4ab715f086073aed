"""Run clients as they come from PyPI and npm against the gateway: ``make test-clients``, or ``--only NAME``.

Each gets an environment of its own. The model is the scripted one, unless ``--url`` names a server that runs. Those
that measure, or train, get ``dualpath serve`` with a small random model, whose answers transformers knows, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path

from tests.clients.agents import AGENTS, Agent

from dualpath.models.init import init_model

HERE = Path(__file__).parent
PYPI = {
    "openai_sdk": ["openai", "pydantic"],
    "anthropic_sdk": ["anthropic", "pydantic"],
    "langchain_clients": ["langchain", "langchain-openai", "langchain-anthropic"],
    "pydantic_ai_client": ["pydantic-ai-slim[openai,anthropic]"],
    "openai_agents_client": ["openai-agents"],
    "litellm_client": ["litellm"],
    "instructor_client": ["instructor[anthropic]"],
    "smolagents_client": ["smolagents[openai]"],
    "inspect_ai_client": ["inspect-ai", "openai", "anthropic"],
    "mini_swe_agent_client": ["mini-swe-agent", "litellm"],
    "skyrl_client": ["aiohttp", "pydantic"],
    "aider_client": ["aider-chat"],
    "verifiers_client": ["verifiers"],
    "lm_eval_client": ["lm-eval[api]"],
    "guidellm_client": [f"torch=={version('torch').partition('+')[0]}", "guidellm"],  # the torch that is here, too
    "aiperf_client": ["aiperf"],
}
MEASURING = ("verifiers_client", "lm_eval_client", "guidellm_client", "aiperf_client")
ALONE = {"skyrl_client": ["skyrl"]}  # installed without what they depend on: models and GPUs
NPM = {
    "openai_node": ["openai"],
    "anthropic_node": ["@anthropic-ai/sdk"],
    "ai_sdk": ["ai", "@ai-sdk/openai", "@ai-sdk/anthropic", "@ai-sdk/openai-compatible", "zod"],
}
INSTALL_S, RUN_S = 900, 900
MIN_SHARE = 0.97  # of an agent's first turn, hit by its second


class Skipped(Exception):
    """It could not be tried, and why."""


def install(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
    if done.returncode:
        raise Skipped(f"cannot be installed: {last_line(done.stderr or done.stdout)}")


def python_of(name: str, home: Path) -> Path:
    python = home / name / "bin" / "python"
    if not python.exists():
        install([sys.executable, "-m", "venv", home / name])
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    install([*pip, *PYPI[name]])
    if name in ALONE:
        install([*pip, "--no-deps", *ALONE[name]])
    return python


def npm_folder(name: str, packages: Sequence[str], home: Path) -> Path:
    if not shutil.which("npm"):
        raise Skipped("npm is not on PATH")
    folder = home / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text("{}")
    install(["npm", "install", "--prefix", folder, "--no-audit", "--no-fund", "--loglevel=error", *packages])
    return folder


def run(command: Sequence[str | Path], url: str, **options: object) -> str:
    """What it printed. Raises AssertionError where it failed."""
    environment = {**os.environ, "DUALPATH_URL": url} | dict(options.pop("env", {}))  # type: ignore[call-overload]
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, last_line(done.stderr or done.stdout)
    return str(done.stdout)


def run_script(name: str, url: str, home: Path) -> str:
    """What was tried: packages and their versions."""
    if name in PYPI:
        python = python_of(name, home)
        run([python, HERE / "pypi" / f"{name}.py"], url)
        listed = json.loads(run([python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"], url))
        versions = {item["name"].lower().replace("_", "-"): item["version"] for item in listed}
        names = [package.partition("[")[0].partition("==")[0] for package in (*PYPI[name], *ALONE.get(name, ()))]
        return ", ".join(f"{package} {versions[package]}" for package in names)
    folder = npm_folder(name, NPM[name], home)
    shutil.copy(HERE / "npm" / f"{name}.mjs", folder)  # node looks for packages beside the script
    run(["node", folder / f"{name}.mjs"], url)
    return ", ".join(npm_version(folder, package) for package in NPM[name])


def npm_version(folder: Path, package: str) -> str:
    found = json.loads((folder / "node_modules" / package / "package.json").read_text())
    return f"{package} {found['version']}"


def run_agent(agent: Agent, url: str, home: Path) -> str:
    """One task, one call of a tool, one answer; the second turn hits the whole first one."""
    folder = npm_folder(agent.name, [agent.package], home)
    command: list[str | Path] = [folder / "node_modules" / ".bin" / agent.command[0], *agent.command[1:]]
    with tempfile.TemporaryDirectory() as name:
        owned, work = Path(name) / "home", Path(name) / "work"
        owned.mkdir()
        work.mkdir()
        said = run(command, url, cwd=work, env={"PWD": str(work), **agent.prepare(owned, work, url)})
    assert "It says:" in said, f"it said {said[-200:]!r}"
    assert "dualpath-was-here" in said, f"it said {said[-200:]!r}"
    second, first = newest(url)
    share = second["num_hit_tokens"] / first["num_prompt_tokens"]
    assert share >= MIN_SHARE, f"its second turn hit {share:.3f} of the first"
    hits = f"second turn hit {second['num_hit_tokens']} tokens, the first had {first['num_prompt_tokens']}"
    return f"{npm_version(folder, agent.package)}: {hits}"


def newest(url: str) -> list[dict[str, int]]:
    with urllib.request.urlopen(f"{url}/v1/dualpath/requests?limit=2") as answer:
        data: list[dict[str, int]] = json.load(answer)["data"]
    return data


def last_line(text: str) -> str:
    lines = text.strip().splitlines() or ["no output"]
    return lines[-1][:300]


def try_all(names: Sequence[str], url: str, home: Path) -> dict[str, str]:
    """What became of each."""
    agents = {agent.name: agent for agent in AGENTS}
    outcomes: dict[str, str] = {}
    for name in names:
        try:
            more = run_agent(agents[name], url, home) if name in agents else run_script(name, url, home)
            outcomes[name] = f"ok: {more}"
        except Skipped as why:
            outcomes[name] = f"skipped: {why}"
        except subprocess.TimeoutExpired as error:
            outcomes[name] = f"FAILED: not done in {error.timeout:g} s"
        except AssertionError as error:
            outcomes[name] = f"FAILED: {error}"
        except Exception as error:  # one that breaks in a way nobody foresaw must not take the others with it
            traceback.print_exc()
            outcomes[name] = f"FAILED: {type(error).__name__}: {error}"
        print(f"{name}: {outcomes[name]}", flush=True)
    return outcomes


@contextmanager
def started(*command: str | Path) -> Iterator[str]:
    """The URL of a server that prints where it listens, for as long as the block lasts."""
    server = subprocess.Popen([sys.executable, "-u", "-m", *command], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield next(word for line in server.stdout for word in line.split() if word.startswith("http://"))
    finally:
        server.terminate()
        server.wait()


def measure(names: Sequence[str], home: Path) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        model, store = Path(folder) / "tiny", f"file://{folder}/kv"
        init_model("llama", model)
        os.environ |= {"DUALPATH_MODEL_DIR": str(model), "DUALPATH_PYTHON": sys.executable}
        sizes = ("--max-context-tokens", "4096", "--prefill", "1", "--decode", "1", "--port", "0")
        with started("dualpath", "serve", "--model", model, "--store", store, *sizes) as url:
            return try_all(names, url, home)


def main() -> int:
    names = [*PYPI, *NPM, *(agent.name for agent in AGENTS)]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="of a server that serves the scripted model; else one is started")
    parser.add_argument("--only", action="append", choices=names)
    parser.add_argument("--home", type=Path, default=Path(".clients"), help="where environments are kept")
    arguments = parser.parse_args()
    home = arguments.home.absolute()
    home.mkdir(exist_ok=True)
    wanted = arguments.only or names
    scripted, measuring = ([name for name in wanted if (name in MEASURING) is chosen] for chosen in (False, True))
    outcomes: dict[str, str] = {}
    if scripted:
        with nullcontext(arguments.url) if arguments.url else started("tests.clients.server") as url:
            outcomes |= try_all(scripted, url, home)
    if measuring:
        outcomes |= measure(measuring, home)
    return int(any(outcome.startswith("FAILED") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
