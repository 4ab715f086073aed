"""Who imports whom, read from the source: modules of ours, and rooms, the packages right below ``dualpath``."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import dualpath

PACKAGE = Path(dualpath.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_imports() -> dict[str, set[str]]:
    """From each module to those of ours that it imports."""
    names = {module_name(path) for path in MODULES}
    return {module_name(path): _imports(path, names) for path in MODULES}


def room_imports() -> dict[str, set[str]]:
    """From each room to those that it imports."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, imported in module_imports().items():
        for one, other in ((_room(module), _room(name)) for name in imported):
            if one in ROOMS and other in ROOMS and one != other:
                found[one].add(other)
    return found


def without_shortcuts(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same graph less the edges that follow from others. It has no loops."""
    below = {node: set(_below(graph, node)) for node in graph}
    return {node: {to for to in ends if not any(to in below[other] for other in ends)} for node, ends in graph.items()}


def _below(graph: Mapping[str, set[str]], node: str) -> Iterator[str]:
    for to in graph[node]:
        yield to
        yield from _below(graph, to)


def _room(module: str) -> str:
    return [*module.split("."), ""][1]


def _imports(path: Path, names: set[str]) -> set[str]:
    """Modules of ours that a module imports, be it at its top or in a function; not what only a type checker sees."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & names or {str(node.module)}
    return (found & names) - {module_name(path)}
