"""No damage to a stored object goes unnoticed, wherever it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.store.blocks import GEOMETRY, NAMESPACE, OBJECT_BYTES, block_bytes, key_of

from dualpath.core.errors import BlockCorruptError
from dualpath.core.geometry import KvGeometry
from dualpath.store.header import HEADER_BYTES, parse_header, verify, write_header

BLOCK = block_bytes(1)


def check(data: bytes) -> None:
    verify(memoryview(data), NAMESPACE, key_of(1), GEOMETRY)


def test_a_whole_block_verifies_and_explains_itself() -> None:
    check(BLOCK)
    header = parse_header(BLOCK)
    assert (header.namespace_digest, header.key, header.parent) == (NAMESPACE, key_of(1), key_of(0))
    assert (header.geometry, header.num_tokens) == (GEOMETRY, GEOMETRY.block_tokens)
    assert header.payload_bytes == GEOMETRY.full_block_bytes == OBJECT_BYTES - HEADER_BYTES


@given(st.integers(0, 8 * HEADER_BYTES - 1) | st.integers(0, 8 * OBJECT_BYTES - 1))
def test_any_flipped_bit_is_found(bit: int) -> None:
    damaged = bytearray(BLOCK)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BlockCorruptError, match=key_of(1).hex()):
        check(bytes(damaged))


@given(st.integers(0, OBJECT_BYTES - 1), st.booleans())
def test_any_missing_or_zeroed_end_is_found(num_bytes: int, is_zeroed: bool) -> None:
    torn = BLOCK[:num_bytes]
    with pytest.raises(BlockCorruptError):
        check(torn + bytes(OBJECT_BYTES - num_bytes) if is_zeroed else torn)


def test_an_overlong_object_is_found() -> None:
    with pytest.raises(BlockCorruptError, match="payload of"):
        check(BLOCK + b"\0")


@pytest.mark.parametrize(
    ("namespace", "number", "geometry", "reason"),
    [
        (b"another-digest--", 1, GEOMETRY, "another namespace"),
        (NAMESPACE, 2, GEOMETRY, "holds block"),
        (NAMESPACE, 1, KvGeometry(8, 8, 64), "wanted"),  # the same number of bytes
    ],
)
def test_another_block_is_named(namespace: bytes, number: int, geometry: KvGeometry, reason: str) -> None:
    with pytest.raises(BlockCorruptError, match=reason):
        verify(memoryview(BLOCK), namespace, key_of(number), geometry)


def test_writing_refuses_what_does_not_fit() -> None:
    buffer = memoryview(bytearray(OBJECT_BYTES))
    with pytest.raises(ValueError, match="object of"):
        write_header(buffer[:-1], NAMESPACE, key_of(1), key_of(0), GEOMETRY)
    with pytest.raises(ValueError, match="namespace digest must be"):
        write_header(buffer, b"short", key_of(1), key_of(0), GEOMETRY)
