"""A request's body, decoded: JSON that every reader reads alike and every writer can write again (I-JSON, RFC 7493)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import numpy as np

from dualpath.gateway.errors import ApiError
from dualpath.gateway.json_size import ContainerLimit, count_char

T = TypeVar("T")


class _LongNumberError(ValueError):
    pass


SHORT_BYTES = 2048  # of a body that is read sooner than looked at
MAX_DEPTH = 256  # far from where Python ends, which depends on who calls
_MIN_NUMBER, _MAX_NUMBER, _MAX_NUMBER_CHARS = -(1 << 63), (1 << 64) - 1, 20
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_EIGHT_DIGITS = 0x0101_0101_0101_0101  # eight times True
_DIGITS = bytes(ord("0") if chr(i).isdecimal() and i < 128 else ord(" ") for i in range(256))


def decoded(raw: bytes, max_containers: int, decode: Callable[[bytes], T]) -> T:
    """What ``decode`` makes of ``raw``.

    Raises InvalidRequestError for too many containers, ApiError 400 for what is no JSON or more than ``MAX_DEPTH``
    deep, has a name twice in one object or a number beyond 64 bits, whose field is named; msgspec.ValidationError as
    ``decode``.
    """
    ContainerLimit(max_containers).check(raw)
    try:
        value = decode(raw)
        _check(raw)
    except msgspec.ValidationError:
        raise
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:  # of msgspec, of UTF-8, and ours
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from error
    return value


def _check(raw: bytes) -> None:
    """What ``decode`` may have passed over. Of objects only the containers in them are kept."""
    raw.decode()  # what was skipped may be no UTF-8
    try:
        level = [[_outline(raw)]]
    except _LongNumberError:
        raise _too_long(raw) from None
    for _ in range(MAX_DEPTH + 1):
        level = [item for container in level for item in container if type(item) is list]
        if not level:
            return
    raise RecursionError


def _outline(raw: bytes) -> Any:
    """The containers in ``raw``. A body is mostly one long text or list of numbers, in which there is nothing to find:
    of an object only the members that hold other objects, or many arrays, are read."""
    is_short = len(raw) < SHORT_BYTES
    if (is_short or _has_eight_digits(raw)) and b"0" * (_MAX_NUMBER_CHARS - 1) in raw.translate(_DIGITS):
        return _read(raw, _number)
    if is_short:
        return _read(raw)
    try:
        members = [bytes(value) for value in _members.decode(raw).values()]
    except msgspec.ValidationError:  # it is no object
        return _read(raw)
    # A member that came twice is not in the dictionary, and its colon is in the text.
    if count_char(raw, ":") != sum(1 + count_char(value, ":") for value in members):  # or a name has a colon
        return _read(raw)
    return [_read(value) for value in members if not value.startswith(b'"') and _may_be_deep(value)]


def _has_eight_digits(raw: bytes) -> bool:
    """Whether one of the text's groups of eight chars is all digits: 19 digits in a row hold at least one."""
    is_digit = np.frombuffer(raw, np.uint8, len(raw) // 8 * 8) - ord("0") < 10
    return bool((is_digit.view(np.uint64) == _EIGHT_DIGITS).any())


def _may_be_deep(value: bytes) -> bool:
    return b"{" in value or count_char(value, "[") >= MAX_DEPTH


def _read(raw: bytes, parse_int: Callable[[str], None] | None = None) -> Any:
    return json.loads(raw.decode(), object_pairs_hook=_object, parse_int=parse_int)


def _object(members: list[tuple[str, Any]]) -> list[Any]:
    if len(dict(members)) < len(members):
        [(twice, _)] = Counter(name for name, _ in members).most_common(1)
        raise ValueError(f"an object has the name {twice[:40]!r} twice")
    return [value for _, value in members if type(value) is list]


def _number(digits: str) -> None:
    if len(digits) > _MAX_NUMBER_CHARS or not _MIN_NUMBER <= int(digits) <= _MAX_NUMBER:
        raise _LongNumberError


def _too_long(raw: bytes) -> ApiError:
    """Says which field of the body holds such a number: looked for only now that one does."""
    body: dict[str, Any] | list[Any] = msgspec.json.decode(raw, type=dict[str, msgspec.Raw] | list[Any])
    for name, value in body.items() if isinstance(body, dict) else ():
        try:
            json.loads(bytes(value).decode(), parse_int=_number)
        except _LongNumberError:
            param = name[:40]
            return ApiError(400, f"{param}: a number does not fit 64 bits", param=param, code="invalid_json")
    return ApiError(400, "a number does not fit 64 bits", code="invalid_json")
