"""Single changes to a source text that a test should notice: an operator turned, a statement dropped, a number one off.

Places are found in the syntax tree and changed in the text, so that a change reads like one that a person made.
Left alone is what cannot matter (logging, assertions, annotations), and what any test notices (an attribute never set).
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

_MAX_NUMBER = 8  # a larger constant is a size or a limit that was chosen, and one more of it as good
_TURNED: dict[type[ast.cmpop], str] = {
    ast.Lt: ">=",
    ast.LtE: ">",
    ast.Gt: "<=",
    ast.GtE: "<",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
_MOVED: dict[type[ast.cmpop], str] = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
_COMPARISON = re.compile(r"is\s+not\b|is\b|not\s+in\b|in\b|[<>=!]=|[<>]")
_LOGS = {"log", "_log", "logger", "_logger", "warnings"}


@dataclass(frozen=True, slots=True)
class Mutation:
    """Bytes ``start`` to ``end`` of the source, encoded, become ``text``."""

    line: int
    kind: str
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.end :]).decode()

    def diff(self, source: str) -> tuple[str, str]:
        """The lines that it changes, before and after, each as one line with single spaces."""
        data, changed = source.encode(), self.apply(source).encode()
        start, rest = data.rfind(b"\n", 0, self.start) + 1, len(data) - (data.find(b"\n", self.end) % (len(data) + 1))
        before, after = (" ".join(text[start : len(text) - rest].decode().split()) for text in (data, changed))
        return before, after


def mutations(source: str) -> list[Mutation]:
    """All of them, in the order of their places."""
    found = set(_Finder(source).of(ast.parse(source), is_init=False))
    return sorted(found, key=lambda m: (m.start, m.end, m.kind, m.text))


class _Finder:
    def __init__(self, source: str) -> None:
        self._source = source.encode()
        self._lines = [0]
        for line in self._source.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def of(self, node: ast.AST, *, is_init: bool) -> Iterator[Mutation]:
        """Those of the node and of all below it."""
        if _is_left_alone(node):
            return
        yield from self._of_statement(node, is_init)
        yield from self._of_test(node)
        yield from self._of_expression(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            is_init = node.name in ("__init__", "__post_init__")
        for child in _children(node):
            yield from self.of(child, is_init=is_init)

    def _of_statement(self, node: ast.AST, is_init: bool) -> Iterator[Mutation]:
        match node:
            case ast.Expr(value=ast.Call() | ast.Await()) | ast.Delete() | ast.Raise() | ast.Continue() | ast.Break():
                yield self._replace(node, "statement dropped", "pass")
            case ast.Return(value=None):
                yield self._replace(node, "statement dropped", "pass")
            case ast.Assign(targets=targets) if not is_init:
                if all(isinstance(target, ast.Attribute | ast.Subscript) for target in targets):
                    yield self._replace(node, "statement dropped", "pass")
            case ast.AugAssign(target=target, value=value, op=op):
                yield self._replace(node, "statement dropped", "pass")
                yield from self._swap(op, self._end(target), self._start(value), node.lineno)

    def _of_test(self, node: ast.AST) -> Iterator[Mutation]:
        if isinstance(node, ast.If):
            yield self._replace(node.test, "if skipped", "False")
        tests = [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While) else getattr(node, "ifs", [])
        for test in tests:
            is_turned_otherwise = isinstance(test, ast.Compare | ast.Constant) or _is_not(test)
            if not is_turned_otherwise:
                yield self._replace(test, "not added", f"not ({self._text(test)})")

    def _of_expression(self, node: ast.AST) -> Iterator[Mutation]:
        match node:
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                for op, one, other in zip(ops, [left, *comparators], comparators, strict=False):
                    for kind, table in (("comparison turned", _TURNED), ("comparison moved", _MOVED)):
                        if type(op) in table:
                            yield self._between(one, other, _COMPARISON, table[type(op)], kind)
            case ast.BoolOp(op=op, values=values):
                word, other_word = ("and", "or") if isinstance(op, ast.And) else ("or", "and")
                text = b""
                for one, other in itertools.pairwise(values):
                    gap = self._source[self._end(one) : self._start(other)]
                    text += self._source[self._start(one) : self._end(one)]
                    text += gap.replace(word.encode(), other_word.encode(), 1)
                text += self._source[self._start(values[-1]) : self._end(values[-1])]
                whole = self._start(values[0]), self._end(values[-1])
                yield Mutation(node.lineno, f"{word} turned", *whole, text.decode())
            case ast.BinOp(left=left, right=right, op=op) if not (_is_text(left) or _is_text(right)):
                yield from self._swap(op, self._end(left), self._start(right), node.lineno)
            case ast.UnaryOp() if _is_not(node):
                start = self._start(node)
                length = len(b"not") + (self._source[start + 3 : start + 4] == b" ")
                yield Mutation(node.lineno, "not removed", start, start + length, "")
            case ast.Constant(value=bool() as value):
                yield self._replace(node, "constant", str(not value))
            case ast.Constant(value=int() as value) if value <= _MAX_NUMBER:
                yield self._replace(node, "constant", str(value + 1))

    def _swap(self, op: ast.operator, start: int, end: int, line: int) -> Iterator[Mutation]:
        sign, other = {ast.Add: (b"+", "-"), ast.Sub: (b"-", "+")}.get(type(op), (b"", ""))
        if sign:
            at = self._source.index(sign, start, end)
            yield Mutation(line, f"{sign.decode()} turned", at, at + 1, other)

    def _between(self, one: ast.expr, other: ast.expr, pattern: re.Pattern[str], text: str, kind: str) -> Mutation:
        start, end = self._end(one), self._start(other)
        found = pattern.search(self._source[start:end].decode())
        assert found is not None
        return Mutation(other.lineno, kind, start + found.start(), start + found.end(), text)

    def _replace(self, node: ast.stmt | ast.expr, kind: str, text: str) -> Mutation:
        return Mutation(node.lineno, kind, self._start(node), self._end(node), text)

    def _text(self, node: ast.expr) -> str:
        return self._source[self._start(node) : self._end(node)].decode()

    def _start(self, node: ast.stmt | ast.expr) -> int:
        return self._lines[node.lineno - 1] + node.col_offset

    def _end(self, node: ast.stmt | ast.expr) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._lines[node.end_lineno - 1] + node.end_col_offset


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """Without what is evaluated once, on importing: decorators, annotations, how a class is made."""
    once = {"decorator_list", "annotation", "returns"}
    if isinstance(node, ast.ClassDef):
        once |= {"bases", "keywords"}
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in once:
                yield child


def _is_left_alone(node: ast.AST) -> bool:
    match node:
        case ast.Assert() | ast.JoinedStr() | ast.Import() | ast.ImportFrom() | ast.keyword(arg="strict"):
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.If(body=body, orelse=[]):
            return all(map(_is_left_alone, body))
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))):
            return name in _LOGS
    return False


def _is_not(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
