"""What of schemas, expressions and grammars is taken, what is left out, what is an error."""

from __future__ import annotations

from typing import Any

import pytest

from dualpath.core.errors import InvalidRequestError
from dualpath.grammar import lark
from dualpath.grammar.lark import Rules
from dualpath.grammar.state import Grammars
from dualpath.grammar.vocabulary import grammars_of

LOOKS_AROUND = r"^(?!\\.)[a-z.]+@[a-z]+$"


@pytest.fixture(scope="module")
def grammars(tiny_model_dir) -> Grammars:
    return grammars_of(tiny_model_dir("llama"), 264, (257,))


def fits(grammars: Grammars, part: str, text: str) -> bool:
    try:
        return bool(grammars.state(Rules().grammar(part), text.encode()).matcher.is_accepting())
    except InvalidRequestError:
        return False


TAKEN: list[tuple[Any, bool, str, str]] = [  # schema, whether it is strict, what fits, what does not
    ({"type": "integer"}, True, "12", "a"),
    (True, True, "[null]", "x"),
    ({"$schema": "https://json-schema.org/nobody/knows", "type": "null"}, True, "null", "1"),
    ({"type": "string", "format": "colour"}, True, '"red"', "red"),
    ({"type": "string", "format": "email", "pattern": LOOKS_AROUND}, True, '"a@b.org"', '"a"'),
    ({"type": "string", "pattern": LOOKS_AROUND}, False, '"x"', "x"),
    ({"type": "object", "properties": {"pattern": {"type": "null"}}}, True, '{"pattern": null}', '{"pattern": 1}'),
    ({"type": "array", "uniqueItems": True}, False, "[1, 1]", "1"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, False, "1.5", "x"),
    ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}}, True,
     '{"next": {"next": {}}}', '{"next": 1}'),
    ({"enum": ["é😀", 1]}, True, '"é😀"', "2"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "is_strict", "right", "wrong"), TAKEN)
def test_schemas_hold(grammars, schema, is_strict, right, wrong):
    part = lark.json_value(schema, is_strict=is_strict)
    assert fits(grammars, part, right)
    assert not fits(grammars, part, wrong)


def test_blanks_end(grammars):
    part = lark.json_value({"type": "object"}, is_strict=True)
    assert fits(grammars, part, "{" + " " * 64 + "}")
    assert not fits(grammars, part, "{" + " " * 65 + "}")


@pytest.mark.parametrize(
    ("schema", "is_strict"),
    [
        ({"type": "array", "uniqueItems": True}, True),
        ({"type": "string", "pattern": LOOKS_AROUND}, True),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, True),
        ({"type": "nothing"}, False),
        ({"$ref": "#/nowhere"}, False),
        ([], False),
        (False, False),
    ],
)
def test_schemas_that_cannot_be_held_are_errors(schema, is_strict):
    with pytest.raises(InvalidRequestError) as raised:
        lark.json_value(schema, is_strict=is_strict)
    assert "x-guidance" not in str(raised.value)


@pytest.mark.parametrize("depth", [100, 240, 320, 450, 480, 490])
@pytest.mark.parametrize("is_strict", [False, True])
def test_schemas_that_are_nested_too_deeply_are_errors(depth, is_strict):
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    with pytest.raises(InvalidRequestError):
        lark.json_value(schema, is_strict=is_strict)


def test_expressions_match_as_a_whole(grammars):
    part = lark.regex(r"^\d{2}/[a-z]+$")
    assert fits(grammars, part, "12/ab")
    assert not fits(grammars, part, "12/ab.")
    assert fits(grammars, lark.regex(r"a\$"), "a$")
    assert fits(grammars, lark.regex(""), "")


def test_rules_keep_their_names_apart(grammars):
    rules = Rules()
    one, other = rules.other('start: x\nx: "a"'), rules.other('start: x\nx: "b"')
    text = rules.ending("<end>")
    grammar = rules.grammar(f"{text} {one} {other}")
    assert grammars.state(grammar, b"any <en text<end>ab").matcher.is_accepting()
    with pytest.raises(InvalidRequestError):
        grammars.state(grammar, b"any<end>ba")
