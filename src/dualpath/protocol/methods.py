"""The calls that a protocol class declares, ready to cross a link: the class is their one definition.

A call is awaited, or it returns an AsyncIterator. Its arguments travel as a tuple, in their order; what they are, and
what its result or its items are, the annotations say. All this is found out once for each class, not at each call.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

from dualpath.core.ids import RequestId

if TYPE_CHECKING:
    import msgspec

F = TypeVar("F", bound=Callable[..., Any])


class Tenure(Enum):
    """What a call changes in what its request holds."""

    HOLDS = "holds"
    RELEASES = "releases"


def holds(function: F) -> F:
    """Marks a call by which a request may hold something of an engine: until it is released, whatever has become of it.

    The first argument says which request: by its id, or as an order whose ``request`` it is.
    """
    function.__dict__["tenure"] = Tenure.HOLDS
    return function


def releases(function: F) -> F:
    """Marks the call by which a request holds nothing any more, unless the answer is False."""
    function.__dict__["tenure"] = Tenure.RELEASES
    return function


@dataclass(frozen=True, slots=True)
class Method:
    function: Callable[..., Any]  # as declared
    signature: inspect.Signature  # without ``self``
    arguments: msgspec.msgpack.Decoder[tuple[Any, ...]]
    is_stream: bool
    answers: msgspec.msgpack.Decoder[Any]  # its result, or one of its items
    tenure: Tenure | None  # None: it is no request's

    @property
    def name(self) -> str:
        return self.function.__name__

    def in_order(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        """All arguments, also those that were named or left out."""
        if not named and len(arguments) == len(self.signature.parameters):
            return arguments
        bound = self.signature.bind(*arguments, **named)
        bound.apply_defaults()
        return bound.args

    def request_id(self, arguments: tuple[Any, ...]) -> RequestId:
        """Whose a call with a tenure is."""
        first = arguments[0]
        return RequestId(first if isinstance(first, str) else first.request.request_id)


@functools.cache
def methods(protocol: type) -> Mapping[str, Method]:
    """The protocol's calls by name, with those that it inherits. Raises TypeError for one that cannot cross a link."""
    members = {name: getattr(protocol, name) for name in dir(protocol) if not name.startswith("_")}
    return {name: _method(member) for name, member in members.items() if inspect.isfunction(member)}


def _method(function: Callable[..., Any]) -> Method:
    import msgspec  # where calls cross a link; in one process they do not

    declared = inspect.signature(function, eval_str=True)
    _, *parameters = declared.parameters.values()
    if any(parameter.kind is not parameter.POSITIONAL_OR_KEYWORD for parameter in parameters):
        raise TypeError(f"{function.__qualname__}: arguments have a name and a place")
    answer: Any = declared.return_annotation
    is_stream = get_origin(answer) is AsyncIterator
    if is_stream == inspect.iscoroutinefunction(function):
        raise TypeError(f"{function.__qualname__}: a call is awaited, or it returns an AsyncIterator")
    arguments: Any = tuple[tuple(parameter.annotation for parameter in parameters)]  # type: ignore[misc]
    return Method(
        function,
        declared.replace(parameters=parameters),
        msgspec.msgpack.Decoder(arguments),
        is_stream,
        msgspec.msgpack.Decoder(get_args(answer)[0] if is_stream else answer),
        function.__dict__.get("tenure"),
    )
