"""The stored object: 4 KiB of header that says whose bytes follow, then the Full Block's payload.

A reader trusts nothing that it did not verify: the header carries its own checksum and the payload's, and binds both
to the namespace, the key and the geometry, so that a torn write, a flipped bit, a misplaced file or another model's
block is a ``BlockCorruptError`` and never a wrong token. The checksum is xxh3_128; measured on one Xeon core with 2
MiB payloads from cache: xxh3_128 14-16 GB/s, crc32c 15.9, blake3 2.7, blake2b 0.7. It guards against accidents, not
against an adversary who can write to the storage. xxhash reads the buffer in place and releases the GIL while it
does.

Layout, little endian: the fields of ``_FIELDS`` from offset 0, zeros, and the header's checksum in the last 16 bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import xxhash

from dualpath.core.errors import BlockCorruptError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.core.keys import KEY_BYTES

HEADER_BYTES = 4096
MAGIC = b"DUALPATH"
FORMAT_VERSION = 1

# magic, version, namespace digest, key, parent key, layers, tokens a block, bytes a token and layer, tokens held,
# payload bytes, payload checksum
_FIELDS = struct.Struct("<8sI16s16s16sIIIIQ16s")
_DIGEST_BYTES = 16
_CHECKED_BYTES = HEADER_BYTES - _DIGEST_BYTES
_PADDING = bytes(_CHECKED_BYTES - _FIELDS.size)
_VERSION_END = len(MAGIC) + 4


@dataclass(frozen=True, slots=True)
class Header:
    """A header whose own checksum holds. Whether it is the wanted one is for ``verify`` to say."""

    namespace_digest: bytes
    key: BlockKey
    parent: BlockKey
    geometry: KvGeometry
    num_tokens: int
    payload_bytes: int
    payload_digest: bytes


def object_bytes(geometry: KvGeometry) -> int:
    """Size of a stored object, and of a staging slot."""
    return HEADER_BYTES + geometry.full_block_bytes


def write_header(
    buffer: memoryview,
    namespace_digest: bytes,
    key: BlockKey,
    parent: BlockKey,
    geometry: KvGeometry,
    num_tokens: int | None = None,
) -> None:
    """Checksum the payload that lies in ``buffer[HEADER_BYTES:]`` and write the header in front of it.

    ``buffer`` is the whole object, contiguous bytes. A Full Block holds ``block_tokens`` tokens unless told otherwise.
    """
    for name, value in (("namespace digest", namespace_digest), ("key", key), ("parent", parent)):
        if len(value) != KEY_BYTES:
            raise ValueError(f"{name} must be {KEY_BYTES} bytes, got {len(value)}")
    if buffer.nbytes != object_bytes(geometry):
        raise ValueError(f"object of {buffer.nbytes} bytes, geometry says {object_bytes(geometry)}")
    fields = _FIELDS.pack(
        MAGIC,
        FORMAT_VERSION,
        namespace_digest,
        key,
        parent,
        geometry.num_layers,
        geometry.block_tokens,
        geometry.bytes_per_token_layer,
        geometry.block_tokens if num_tokens is None else num_tokens,
        geometry.full_block_bytes,
        xxhash.xxh3_128_digest(buffer[HEADER_BYTES:]),
    )
    checked = fields + _PADDING
    buffer[:HEADER_BYTES] = checked + xxhash.xxh3_128_digest(checked)


def parse_header(data: bytes | memoryview) -> Header:
    """Read a header. Raises BlockCorruptError where it is too short, foreign, of another version, or damaged."""
    if len(data) < HEADER_BYTES:
        raise BlockCorruptError(f"header is truncated: {len(data)} of {HEADER_BYTES} bytes")
    head = bytes(data[:HEADER_BYTES])
    if head[: len(MAGIC)] != MAGIC:
        raise BlockCorruptError("not a block: wrong magic")
    version = int.from_bytes(head[len(MAGIC) : _VERSION_END], "little")
    if version != FORMAT_VERSION:
        raise BlockCorruptError(f"format version {version}, this program reads {FORMAT_VERSION}")
    if xxhash.xxh3_128_digest(head[:_CHECKED_BYTES]) != head[_CHECKED_BYTES:]:
        raise BlockCorruptError("header checksum does not hold")
    return _unpack(head)


def _unpack(head: bytes) -> Header:
    (_, _, namespace_digest, key, parent, layers, block_tokens, token_bytes, num_tokens, payload_bytes, digest) = (
        _FIELDS.unpack_from(head)
    )
    try:
        geometry = KvGeometry(layers, block_tokens, token_bytes)
    except ValueError as error:
        raise BlockCorruptError(f"impossible geometry: {error}") from None
    if payload_bytes != geometry.full_block_bytes or not 0 < num_tokens <= block_tokens:
        raise BlockCorruptError(f"{payload_bytes} bytes, {num_tokens} tokens do not fit {geometry}")
    return Header(namespace_digest, BlockKey(key), BlockKey(parent), geometry, num_tokens, payload_bytes, digest)


def verify_payload(object_data: memoryview, header: Header) -> None:
    """Raise BlockCorruptError unless exactly the payload that ``header`` describes follows it."""
    payload = object_data[HEADER_BYTES:]
    if payload.nbytes != header.payload_bytes:
        raise BlockCorruptError(f"payload of {payload.nbytes} bytes instead of {header.payload_bytes}")
    if xxhash.xxh3_128_digest(payload) != header.payload_digest:
        raise BlockCorruptError("payload checksum does not hold")


def verify(object_data: memoryview, namespace_digest: bytes, key: BlockKey, geometry: KvGeometry) -> None:
    """Raise BlockCorruptError, naming the reason, unless ``object_data`` is exactly the wanted block, undamaged.

    Any thread; the time goes into the payload's checksum, during which the GIL is free.
    """
    try:
        header = parse_header(object_data)
        if header.namespace_digest != namespace_digest:
            raise BlockCorruptError("belongs to another namespace (model, dtype or layout)")
        if header.key != key:
            raise BlockCorruptError(f"holds block {header.key.hex()}")
        if header.geometry != geometry:
            raise BlockCorruptError(f"has {header.geometry}, wanted {geometry}")
        verify_payload(object_data, header)
    except BlockCorruptError as error:
        raise BlockCorruptError(f"block {key.hex()}: {error}") from None
