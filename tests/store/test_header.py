"""No damage to a stored object goes unnoticed, wherever it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.store.blocks import GEOMETRY, NAMESPACE, OBJECT_BYTES, block_bytes, key_of

from dualpath.core.errors import BlockCorruptError, ConfigError
from dualpath.core.geometry import KvGeometry
from dualpath.store.header import (
    HEADER_BYTES,
    MAX_LAYERS,
    BlockName,
    check_header,
    make_header,
    object_bytes,
    parse_header,
    payload_digests,
    verify,
    write_header,
)

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


def test_digests_of_a_partly_filled_block_hold_when_more_rows_have_come() -> None:
    payload = memoryview(bytearray(BLOCK))[HEADER_BYTES:]
    digests = payload_digests(payload, GEOMETRY, 5)
    row, end = 5 * GEOMETRY.bytes_per_token_layer, GEOMETRY.layer_block_bytes
    payload[row:end] = bytes(end - row)
    assert (payload_digests(payload, GEOMETRY, 5) == digests).all()
    payload[row - 1] ^= 1
    assert (payload_digests(payload, GEOMETRY, 5) != digests).tolist() == [True, False, False, False]


def test_a_partly_filled_block_is_no_stored_block() -> None:
    """Its digests say nothing of the rest."""
    data = bytearray(BLOCK)
    digests = payload_digests(memoryview(data)[HEADER_BYTES:], GEOMETRY, 15)
    data[:HEADER_BYTES] = make_header(NAMESPACE, BlockName(key_of(1), key_of(0), 15), GEOMETRY, digests)
    check_header(bytes(data), NAMESPACE, GEOMETRY, key_of(1), 15, key_of(0))
    with pytest.raises(BlockCorruptError, match="holds 15 tokens, wanted 16"):
        check(bytes(data))


def test_a_header_names_its_parent() -> None:
    with pytest.raises(BlockCorruptError, match=f"follows block {key_of(0).hex()}"):
        check_header(BLOCK, NAMESPACE, GEOMETRY, key_of(1), GEOMETRY.block_tokens, key_of(7))


def test_an_object_of_the_former_format_is_another_version() -> None:
    former = bytearray(BLOCK)
    former[8:12] = (1).to_bytes(4, "little")
    with pytest.raises(BlockCorruptError, match="format version 1, this program reads 2"):
        parse_header(former)


def test_a_model_with_more_layers_than_a_header_holds_digests_is_refused() -> None:
    assert object_bytes(KvGeometry(MAX_LAYERS, 1, 1)) == HEADER_BYTES + MAX_LAYERS
    digests = np.arange(MAX_LAYERS, dtype=np.uint64)
    header = make_header(NAMESPACE, BlockName(key_of(1), key_of(0), 1), KvGeometry(MAX_LAYERS, 1, 1), digests)
    assert (parse_header(header).digests == digests).all()
    with pytest.raises(ConfigError, match=f"has {MAX_LAYERS + 1} layers"):
        object_bytes(KvGeometry(MAX_LAYERS + 1, 1, 1))


def test_writing_refuses_what_does_not_fit() -> None:
    buffer = memoryview(bytearray(OBJECT_BYTES))
    with pytest.raises(ValueError, match="object of"):
        write_header(buffer[:-1], NAMESPACE, key_of(1), key_of(0), GEOMETRY)
    with pytest.raises(ValueError, match="namespace digest must be"):
        write_header(buffer, b"short", key_of(1), key_of(0), GEOMETRY)
