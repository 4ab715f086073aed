"""The documentation names only what is there: files, commands, flags; and every page stays short enough to be read."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dualpath.gateway.openapi import openapi_document
from tests.imports import PACKAGE, ROOMS

ROOT = Path(__file__).parents[1]
LOG = ROOT / "docs" / "log.md"  # tells of what was, too
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
LIVE = [page for page in PAGES if page != LOG]
MAX_LINES, MAX_LINE_CHARS = 130, 120  # below both

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")
_PATH = re.compile(r"(?:[a-z][\w.-]*/)+[\w.-]*")
_FLAG = re.compile(r"(?<!\S)--[a-z][a-z-]*")
_COMMAND = re.compile(r"(?:^|[\s/])dualpath +([a-z][^#|;&]*)")
_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".txt", ".svg"}


def _flags_of_commands() -> dict[tuple[str, ...], set[str]]:
    """From the words of a command, as ``sim run``, to its flags."""
    found = {}
    for file in (ROOT / "tests/cli/flags").iterdir():
        title, _, rest = file.read_text().partition("\n")
        named = (line.partition("|")[0] for line in rest.splitlines() if line.startswith("-"))
        found[tuple(title.split()[1:])] = {flag for names in named for flag in _FLAG.findall(names.replace(",", " "))}
    return found


COMMANDS = _flags_of_commands()
ALL_FLAGS = set().union(*COMMANDS.values())
ALL_FLAGS |= {
    "--kv-transfer-config",
    "--max-model-len",
    "--middleware",
    "--block-size",
    "--kv-cache-memory-bytes",
    "--no-async-scheduling",
}  # of vLLM
_WORDS = {
    word
    for folder in ("src", "tests", "deploy")
    for file in (ROOT / folder).rglob("*")
    if file.suffix in {".py", ".pyi", ".txt", ".toml", ".js"} and file != Path(__file__)
    for word in re.findall(r"\w+", file.read_text())
} | {file.stem for file in ROOT.rglob("*.py")}
GROUPS = {words[:length] for words in COMMANDS for length in (1, 2)}


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


def inline_code(page: Path) -> list[str]:
    """What stands in single backticks, line ends made spaces."""
    return [" ".join(code.split()) for code in _CODE.findall(_FENCE.sub("", page.read_text()))]


def command_lines(page: Path) -> Iterator[str]:
    """The lines of code blocks, continued lines joined."""
    text = page.read_text().replace("\\\n", " ")
    fenced = [line for block in _FENCE.findall(text) for line in block.splitlines()[1:-1]]
    indented = [line for line in _FENCE.sub("", text).splitlines() if line.startswith("    ")]
    yield from fenced
    yield from indented


def wrong_in_command(code: str) -> list[str]:
    """Of ``dualpath VERB ... --flag``: the verb or the flags that do not exist."""
    wrong = []
    for rest in _COMMAND.findall(code):
        words = rest.split()
        known = max((w for w in GROUPS if tuple(words[: len(w)]) == w), key=len, default=())
        if known not in COMMANDS and re.fullmatch(r"[a-z]+", "".join(words[len(known) : len(known) + 1])):
            wrong.append(" ".join(["dualpath", *words[: len(known) + 1]]))
            continue
        below = [flags for words_of, flags in COMMANDS.items() if words_of[: len(known)] == known]
        own = rest.partition(" -- ")[0]  # what follows is another program's
        wrong += sorted(set(_FLAG.findall(own)) - set().union(*below) - {"--help"})
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_to_files(page: Path) -> None:
    links = [link for link in _LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == []


def named_files(code: str) -> list[str]:
    paths = [word for word in code.split() if _PATH.fullmatch(word)]
    return [path for path in paths if Path(path).suffix in _SUFFIXES or path.startswith(("src/", "tests/", "docs/"))]


@pytest.mark.parametrize("page", LIVE, ids=ids)
def test_named_files_are_there(page: Path) -> None:
    named = [path for code in inline_code(page) for path in named_files(code)]
    places = (ROOT, ROOT / "src/dualpath")
    assert [path for path in named if not any((place / path).exists() for place in places)] == []


@pytest.mark.parametrize("page", LIVE, ids=ids)
def test_named_modules_are_there(page: Path) -> None:
    modules = [code for code in inline_code(page) if re.fullmatch(r"dualpath(\.[a-z_]+)+", code)]
    paths = [ROOT / "src" / module.replace(".", "/") for module in modules]
    gone = {"dualpath.launch"} if page.name == "CHANGELOG.md" else set()
    found = {m for m, path in zip(modules, paths, strict=True) if path.is_dir() or path.with_suffix(".py").exists()}
    assert set(modules) - found - gone == set()


@pytest.mark.parametrize("page", LIVE, ids=ids)
def test_commands_and_flags_are_there(page: Path) -> None:
    inline = inline_code(page)
    wrong = [name for code in [*command_lines(page), *inline] for name in wrong_in_command(code)]
    wrong += [code for code in inline if _FLAG.match(code) and _FLAG.findall(code)[0] not in ALL_FLAGS]
    assert wrong == []


@pytest.mark.parametrize("page", LIVE, ids=ids)
def test_pages_are_short(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert len(lines) < MAX_LINES
    in_prose = [line for line in lines if not line.startswith(("|", "!["))]
    assert [line for line in in_prose if len(line) >= MAX_LINE_CHARS] == []


def test_these_tests_see_what_is_wrong() -> None:
    assert wrong_in_command("RAY_AUTH_MODE=token dualpath up --confg x.toml --block") == ["--confg"]
    assert wrong_in_command("dualpath sim fly --json") == ["dualpath sim fly"]
    assert wrong_in_command("dualpath testbed run --node pe0 -- ls --all") == []
    assert named_files("python engine/prefill.py tests/e2e GET /v1/models") == ["engine/prefill.py", "tests/e2e"]


def test_the_readmes_measurements_are_in_the_log() -> None:
    shown = (ROOT / "README.md").read_text() + (ROOT / "docs/rollout.svg").read_text()
    measured = re.findall(r"\d+\.\d+(?= s\b| times)", shown)
    assert len(measured) >= 5
    logged = re.findall(r"\d+\.\d+", LOG.read_text())
    assert [number for number in measured if number not in logged] == []


def test_every_route_is_in_the_documentation() -> None:
    codes = {word for page in LIVE for code in inline_code(page) for word in re.split(r"[\s?]", code)}
    assert [path for path in openapi_document()["paths"] if "{" not in path and path not in codes] == []


# Names in other people's files and interfaces.
_FOREIGN = {
    *("wire_api", "model_provider", "namespace__name", "finished_reason"),
    *("show_raw_agent_reasoning", "model_args", "openai_http"),
}


@pytest.mark.parametrize("page", LIVE, ids=ids)
def test_names_in_code_are_somebodys(page: Path) -> None:
    """``like_this``, with or without what comes before a series' name."""
    names = {name for code in inline_code(page) for name in re.findall(r"^(?:\w+\.)*([a-z]+(?:_[a-z0-9]+)+)\b", code)}
    assert [name for name in names - _FOREIGN if not _WORDS & {name, f"dualpath_{name}"}] == []


def rooms_of_the_page() -> dict[str, str]:
    """From each room of the architecture's table to what is said of it."""
    table = (ROOT / "docs/architecture.md").read_text().partition("\n| room |")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))


def test_the_rooms_are_those_of_the_layers() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [name.removeprefix("dualpath.") for row in contracts[0]["layers"] for name in row.split(" | ")]
    assert [room for room in rooms_of_the_page() if room != "config"] == layers  # which is no layer: it has a contract
    assert set(rooms_of_the_page()) == ROOMS


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_what_is_said_of_a_room_names_its_packages_and_nothing_else(room: str) -> None:
    named = set(re.findall(r"`([a-z]\w*)`", rooms_of_the_page()[room])) - {"dualpath"}
    packages = {path.parent.name for path in (PACKAGE / room).glob("*/__init__.py")}
    assert packages - named == set()
    assert {name for name in named - packages if not (PACKAGE / room / f"{name}.py").exists()} == set()


def test_the_readme_leads_to_every_page() -> None:
    links = {(ROOT / link).resolve() for link in _LINK.findall((ROOT / "README.md").read_text()) if "://" not in link}
    assert [ids(page) for page in PAGES[1:] if page.resolve() not in links] == []
