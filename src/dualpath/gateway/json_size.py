"""How much a JSON text would hold, known before anything is built of it: a byte of text can become 60 of objects."""

from __future__ import annotations

import numpy as np

from dualpath.gateway.errors import invalid


class ContainerLimit:
    """Objects and arrays that all texts of one request may hold together."""

    def __init__(self, max_containers: int) -> None:
        self._max_containers = self._rest = max_containers

    def check(self, text: bytes, param: str | None = None) -> None:
        """Raise InvalidRequestError if ``text`` has more of them than are left. It need not be valid JSON."""
        # Cheap, and too many only where strings hold some.
        num_containers = count_char(text, "{") + count_char(text, "[")
        if num_containers > self._rest:
            num_containers = count_containers(text)
        if num_containers > self._rest:
            raise invalid(
                f"the request has more than {self._max_containers} objects and arrays, more than its context has room "
                "for",
                param,
                "context_length_exceeded",
            )
        self._rest -= num_containers


def count_char(text: bytes, char: str) -> int:
    """As ``text.count``, five times as fast where the text is long."""
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord(char)))


def count_containers(text: bytes) -> int:
    """Opening braces and brackets outside strings."""
    plain = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")  # what is left of the quotes begins or ends a string
    chars = np.frombuffer(plain, np.uint8)
    in_string = np.bitwise_xor.accumulate(chars == ord('"'))
    opening = (chars == ord("{")) | (chars == ord("["))
    return int(np.count_nonzero(opening & ~in_string))
