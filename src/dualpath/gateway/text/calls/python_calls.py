"""Calls written as Python: ``[read(path="a.py", lines=[1, 2]), now()]``, as Llama 4, Gemma 3, Olmo 3 and LFM2 do."""

from __future__ import annotations

import ast
import json

from dualpath.gateway.text.calls.grammar import CallGrammar, take_mark
from dualpath.gateway.text.calls.sink import CallSink
from dualpath.gateway.text.reader import Need, Reader

_WORDS = {"true": True, "false": False, "null": None}  # as models write that have read JSON


class PythonCalls(CallGrammar):
    """A list without a mark is one of calls if it begins an answer and all of them are tools; behind a mark, any."""

    openers = ("<|python_start|>", "<|tool_call_start|>", "<function_calls>", "<|python_tag|>")
    bare_openers = ("[",)
    closers = ("<|python_end|>", "<|tool_call_end|>", "</function_calls>")

    def read(self, reader: Reader, i: int, opener: str, sink: CallSink) -> Need[bool]:
        is_bare = opener == "["
        if is_bare and not (yield from self._names_tool(reader, i)):
            return False
        start = i - 1 if is_bare else (yield from reader.skip_blank(i))
        end = yield from self._end(reader, start)
        calls = None if end is None else _calls(reader.text(start, end))
        if end is None or not calls or (is_bare and not all(name in self.names for name, _ in calls)):
            return False
        reader.take(end)
        for name, arguments in calls:
            sink.whole(name, arguments)
        yield from take_mark(reader, *self.closers)
        return True

    def _names_tool(self, reader: Reader, i: int) -> Need[bool]:
        """Whether a tool's call begins at ``i``: no other list is held back until it ends."""
        start = i = yield from reader.skip_blank(i)
        while (char := (yield from reader.peek(i))) and (char.isalnum() or char in "_."):
            i += 1
        return char == "(" and reader.text(start, i) in self.names

    def _end(self, reader: Reader, i: int) -> Need[int | None]:
        """Behind the bracket that closes the one at ``i``; None where none does, or a mark comes before. Without a
        list, calls stand in lines of their own up to the mark that ends them."""
        if (yield from reader.peek(i)) != "[":
            found = yield from reader.find(i, *self.markers)
            return None if found is None else found[0]
        depth, quote = 0, ""
        while char := (yield from reader.peek(i)):
            i += 1
            if quote:
                if char == "\\":
                    i += 1
                elif char == quote:
                    quote = ""
            elif char in "\"'":
                quote = char
            elif char in "([{":
                depth += 1
            elif char in ")]}":
                depth -= 1
                if depth == 0:
                    return i
            elif char == "<" and (yield from reader.sees(i - 1, *self.markers)):
                return None
        return None


def _calls(text: str) -> list[tuple[str, str]] | None:
    """Names and arguments as JSON; None where the text is something else."""
    try:
        listed = ast.parse(text.strip(), mode="eval").body if text[:1] == "[" else None
        if listed is None:
            lines = [statement.value for statement in ast.parse(text.strip()).body if isinstance(statement, ast.Expr)]
        elif isinstance(listed, ast.List):
            lines = listed.elts
        else:
            return None
        return [_call(line) for line in lines]
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None


def _call(node: ast.expr) -> tuple[str, str]:
    """Raises ValueError and TypeError for what is none."""
    if not isinstance(node, ast.Call) or node.args or not isinstance(node.func, ast.Name | ast.Attribute):
        raise ValueError("no call, or arguments without names")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("no name")
        arguments[keyword.arg] = ast.literal_eval(_Words().visit(keyword.value))
    return ast.unparse(node.func), json.dumps(arguments, ensure_ascii=False, allow_nan=False)


class _Words(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.copy_location(ast.Constant(_WORDS[node.id]), node) if node.id in _WORDS else node
