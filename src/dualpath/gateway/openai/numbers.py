"""Numbers as clients spell them: where a body wants a whole number, 100.0 and 1e2 are 100."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

Body = TypeVar("Body", bound=msgspec.Struct)

_EXACT = 1 << 53  # beyond it not every whole number is a float


def decode_body(raw: bytes, body_type: type[Body]) -> Body:
    """``raw`` as ``body_type``. Raises as msgspec does: ValidationError for wrong types, DecodeError for no JSON."""
    try:
        return msgspec.json.decode(raw, type=body_type)
    except msgspec.ValidationError as error:
        if "got `float`" not in str(error):
            raise
    return msgspec.convert(_whole(msgspec.json.decode(raw), _type_of(body_type)), body_type)


@cache
def _type_of(body_type: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(body_type)


def _whole(value: Any, wanted: inspect.Type) -> Any:
    """``value`` with whole numbers where ``wanted`` has no others; what may be anything stays as it is."""
    types = wanted.types if isinstance(wanted, inspect.UnionType) else (wanted,)
    if isinstance(value, float):
        takes = {type(item) for item in types}
        is_whole = value.is_integer() and abs(value) < _EXACT
        return int(value) if is_whole and inspect.IntType in takes and inspect.FloatType not in takes else value
    if isinstance(value, list):
        items = next((item.item_type for item in types if isinstance(item, inspect.ListType)), None)
        return value if items is None else [_whole(item, items) for item in value]
    if isinstance(value, dict):
        struct = next((item for item in types if isinstance(item, inspect.StructType)), None)
        fields = {field.encode_name: field.type for field in struct.fields} if struct else {}
        return {name: _whole(item, fields[name]) if name in fields else item for name, item in value.items()}
    return value
