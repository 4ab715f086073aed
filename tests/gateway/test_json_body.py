"""The reading of bodies accepts what Python's json accepts, but for what two readers could read differently."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.gateway import json_body
from dualpath.gateway.errors import ApiError
from dualpath.gateway.json_body import MAX_DEPTH, SHORT_BYTES, decoded
from dualpath.gateway.json_size import count_char

BIGGEST, SMALLEST = 2**64 - 1, -(2**63)
# Few, so that some come twice; some the same in other letters, and some with the chars that a quick look counts.
NAMES = [b'"a"', b'"\\u0061"', b'"b"', b'"a:"', b'"a\\u003a"', b'"{["', b'"\\"\\\\"', b'""', '"é"'.encode()]
STRINGS = [
    b'":"',
    b'"{:["',
    b'"\\"}"',
    b'"\\u003a"',
    b'"\\ud800"',
    b'"\\ud83d\\ude00"',
    b'"' + b"9" * 30 + b'"',
    b'"\xff"',
]
ODD = [
    b"1" + b"0" * 18,
    b"-" + b"9" * 19,
    b"1" * 25,
    b"NaN",
    b"01",
    b"1.",
    b"-0",
    b"1e5",
    b"1e999",
    b"12345678.12345678",
]
NUMBERS = [str(number).encode() for number in (0, -1, BIGGEST, BIGGEST + 1, SMALLEST, SMALLEST - 1)]


def _listed(items: list[bytes], space: bytes) -> bytes:
    return b"[" + (b"," + space).join(items) + b"]" + space


def _object(members: list[tuple[bytes, bytes]], space: bytes) -> bytes:
    return space + b"{" + b",".join(name + space + b":" + value for name, value in members) + b"}"


spaces = st.sampled_from([b"", b" ", b"\r\n\t"])
names = st.sampled_from(NAMES) | st.text(max_size=3).map(lambda name: json.dumps(name).encode())
scalars = st.one_of(
    st.sampled_from([b"true", b"null", *STRINGS, *ODD, *NUMBERS]),
    st.integers(-(2**66), 2**66).map(lambda number: str(number).encode()),
    st.floats().map(lambda number: json.dumps(number).encode()),
    st.text().map(lambda text: json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")),
    st.integers(MAX_DEPTH - 3, MAX_DEPTH + 1).map(lambda depth: b"[" * depth + b"]" * depth),
    st.integers(100, 300).map(lambda count: _listed([b"150000"] * count, b" ")),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(_listed, st.lists(inner, max_size=4), spaces),
        st.builds(_object, st.lists(st.tuples(names, inner), max_size=4), spaces),
    ),
    max_leaves=12,
)
objects = st.builds(_object, st.lists(st.tuples(names, values), max_size=5), spaces)


@st.composite
def damaged(draw: Callable[..., Any]) -> bytes:
    text = draw(objects)
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.binary(max_size=2)) + text[at + draw(st.integers(0, 2)) :]


def _by_python(raw: bytes) -> Any:
    """Raises ValueError, or RecursionError."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a name comes twice")
        return dict(pairs)

    def whole(digits: str) -> int:
        if not SMALLEST <= int(digits) <= BIGGEST:
            raise ValueError("beyond 64 bits")
        return int(digits)

    def real(text: str) -> float:
        if float(text) in (float("inf"), float("-inf")):
            raise ValueError("beyond a float")
        return float(text)

    def constant(name: str) -> None:
        raise ValueError(name)

    value = json.loads(
        raw.decode(), object_pairs_hook=members, parse_int=whole, parse_float=real, parse_constant=constant
    )
    json.dumps(value, ensure_ascii=False).encode()  # raises for half of a surrogate pair
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for item in level if isinstance(item, list | dict)]
        level = [item for inner in level for item in (inner.values() if isinstance(inner, dict) else inner)]
    if any(isinstance(item, list | dict) for item in level):
        raise RecursionError
    return value


def _found(read: Callable[[bytes], Any], raw: bytes) -> str:
    try:
        return repr(read(raw))
    except (ValueError, RecursionError, ApiError):
        return "refused"


@settings(max_examples=400, deadline=None)
@given(raw=objects | values | damaged())
def test_as_python_reads_it(raw: bytes) -> None:
    for space in (b"", b" " * SHORT_BYTES):  # with which it is a long one
        found = _found(lambda text: decoded(text, 1 << 20, msgspec.json.decode), raw + space)
        assert found == _found(_by_python, raw)


@pytest.mark.parametrize("opening", ["[", '{"x":', '[1,{"x":'])
@pytest.mark.parametrize("around", ["{}", '{{"x": {}}}', "[1, {}]"])
@pytest.mark.parametrize("depth", range(MAX_DEPTH - 2, MAX_DEPTH + 3))
def test_the_deepest(opening: str, around: str, depth: int) -> None:
    num_open = opening.count("[") + opening.count("{")
    nested = opening * (depth // num_open)
    closing = "".join({"[": "]", "{": "}"}[char] for char in reversed(nested) if char in "[{")
    raw = around.format(f"{nested}{'0' if nested.endswith(':') else ''}{closing}").encode()
    for space in (b"", b" " * SHORT_BYTES):
        found = _found(lambda text: decoded(text, 1 << 20, msgspec.json.decode), raw + space)
        assert found == _found(_by_python, raw)


def test_what_stands_in_a_long_body() -> None:
    """Wherever it stands: the quick look at a body is by eights."""
    ids = b'"prompt": [' + b"1234567, " * 5000 + b"1]"
    assert decoded(b"{" + ids + b"}", 9, msgspec.json.decode)["prompt"][0] == 1234567
    for shift in range(8):
        long = b" " * shift + b'"x": ' + str(BIGGEST + 1).encode()
        for odd in (long, b'"x": 1,' + b" " * shift + b'"x": 2', b'"x": {"y": 1,' + b" " * shift + b'"y": 1}'):
            for body in (b"{" + ids + b", " + odd + b"}", b"{" + odd + b", " + ids + b"}"):
                with pytest.raises(ApiError):
                    decoded(body, 9, msgspec.json.decode)


def test_numbers_are_not_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """That was most of what a prompt of token ids cost."""
    read: list[bytes] = []
    loads = json.loads
    monkeypatch.setattr(json_body.json, "loads", lambda text, **how: read.append(text) or loads(text, **how))
    options = '{"include_usage": true}'
    raw = f'{{"prompt": {list(range(30_000))}, "echo": [[1, 2], [3]], "text": "{{:[", "stream_options": {options}}}'
    assert len(decoded(raw.encode(), 9, msgspec.json.decode)) == 4
    assert read == [options]


@pytest.mark.parametrize("text", [b"", b"{", b"a{b{", bytes(range(256)) * 3])
def test_chars_are_counted(text: bytes) -> None:
    assert count_char(text, "{") == text.count(b"{")
