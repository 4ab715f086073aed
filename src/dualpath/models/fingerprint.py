"""Identify a model by its configuration and a sample of every tensor, so that cached KV never meets other weights.

Two directories with equal fingerprints share cached KV. Reading 3 KiB of each tensor keeps this at seconds for models
of hundreds of gigabytes. Fine-tuning, merging an adapter, quantizing and pruning touch whole tensors and are seen.

What it cannot see: an edit that leaves the first, middle and last KiB of every tensor as they were, such as a patch to
a few rows of one matrix. It is no defence against someone who builds such a file on purpose. Custom modelling code
(``auto_map``), adapters kept outside the directory and tokenizers are not part of it either; KV is keyed by token ids.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dualpath.core.errors import UnsupportedModelError

DIGEST_BYTES = 16
SAMPLE_BYTES = 1024  # at the start, the middle and the end of each tensor
BIN_SAMPLES = 4096  # evenly spread over each pickled checkpoint, which has no index to find tensors by
_HASHED_AT_ONCE_BYTES = 16 << 20
MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit

# Fields that describe how the file came about, or how transformers runs it, but not what it computes.
COSMETIC_FIELDS = frozenset({"transformers_version", "_name_or_path", "_commit_hash", "_attn_implementation"})


class _Digest:
    """BLAKE2b over a list of byte strings; each is preceded by its length, so no two lists run together."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"dualpath-model")

    def add(self, part: bytes) -> None:
        self._hash.update(len(part).to_bytes(8, "little"))
        self._hash.update(part)

    def hex(self) -> str:
        return self._hash.hexdigest()


def fingerprint_model_dir(model_dir: Path, *, whole: bool = False) -> str:
    """32 hex digits for the model in ``model_dir``; the same wherever the directory lies and whenever it was written.

    ``whole``: of every byte of the weights; it is another name then. A step of training may change very few.

    Reads config.json and every ``*.safetensors`` file, or, where there is none, every ``*.bin`` file.
    Raises UnsupportedModelError when the directory holds no readable model.
    """
    digest, take = _Digest(), _hash if whole else _sample
    try:
        digest.add(canonical_config((model_dir / "config.json").read_bytes()))
        shards = sorted(model_dir.glob("*.safetensors"))
        for shard in shards:
            _add_safetensors(digest, shard, take)
        checkpoints = [] if shards else sorted(model_dir.glob("*.bin"))
        for checkpoint in checkpoints:
            _add_bin(digest, checkpoint, whole=whole)
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"cannot read the model in {model_dir}: {' '.join(str(error).split())}") from error
    if not shards and not checkpoints:
        raise UnsupportedModelError(f"cannot read the model in {model_dir}: no *.safetensors or *.bin weights")
    return digest.hex()


def canonical_config(config_json: bytes) -> bytes:
    """config.json without cosmetic fields, in one spelling: key order and white space do not count."""
    config = json.loads(config_json)
    if not isinstance(config, dict):
        raise ValueError("config.json is not a JSON object")
    return json.dumps(without_cosmetics(config), sort_keys=True, separators=(",", ":")).encode()


def without_cosmetics(value: Any) -> Any:
    if isinstance(value, dict):  # composite models nest one config in another
        return {key: without_cosmetics(inner) for key, inner in value.items() if key not in COSMETIC_FIELDS}
    return [without_cosmetics(inner) for inner in value] if isinstance(value, list) else value


def _add_safetensors(digest: _Digest, path: Path, take: Callable[[int, int, int], bytes]) -> None:
    with path.open("rb") as file:
        fd = file.fileno()
        data_start, tensors = safetensors_header(fd, path.name)
        for name, tensor in tensors:
            begin, end = tensor["data_offsets"]
            digest.add(json.dumps([name, tensor["dtype"], tensor["shape"]]).encode())
            digest.add(take(fd, data_start + begin, end - begin))


def safetensors_header(fd: int, file_name: str) -> tuple[int, list[tuple[str, dict[str, Any]]]]:
    """Where a file's data begins, and its tensors, in name order. Raises ValueError where it is not whole."""
    size_bytes = os.fstat(fd).st_size
    header_bytes = int.from_bytes(_read(fd, 0, 8), "little")
    if header_bytes > min(MAX_HEADER_BYTES, size_bytes - 8):
        raise ValueError(f"{file_name} is not a safetensors file")
    data_start, tensors = 8 + header_bytes, list(_tensors(json.loads(_read(fd, 8, header_bytes)), file_name))
    for name, tensor in tensors:
        begin, end = tensor["data_offsets"]
        if not 0 <= begin <= end <= size_bytes - data_start:
            raise ValueError(f"{file_name} is truncated: tensor {name} lies outside the file")
    return data_start, tensors


def _tensors(header: Any, file_name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and entry of each tensor, in name order; ``__metadata__`` tells who wrote the file and is left out."""
    if not isinstance(header, dict):
        raise ValueError(f"{file_name} has no safetensors header")
    for name in sorted(header.keys() - {"__metadata__"}):
        entry = header[name]
        if not isinstance(entry, dict) or not {"data_offsets", "dtype", "shape"} <= entry.keys():
            raise ValueError(f"{file_name} has a malformed entry for tensor {name}")
        offsets = entry["data_offsets"]
        if not isinstance(offsets, list) or [type(offset) for offset in offsets] != [int, int]:
            raise ValueError(f"{file_name} has malformed offsets for tensor {name}")
        yield name, entry


def _sample(fd: int, start: int, num_bytes: int) -> bytes:
    """The first, middle and last SAMPLE_BYTES of a tensor, or all of a small one."""
    if num_bytes <= 3 * SAMPLE_BYTES:
        return _read(fd, start, num_bytes)
    middle, last = (num_bytes - SAMPLE_BYTES) // 2, num_bytes - SAMPLE_BYTES
    return b"".join(_read(fd, start + offset, SAMPLE_BYTES) for offset in (0, middle, last))


def _hash(fd: int, start: int, num_bytes: int) -> bytes:
    """16 bytes that tell it from what it may be by accident, at the speed of memory."""
    import xxhash  # a bare box that never updates weights has none

    digest = xxhash.xxh3_128()
    for offset in range(0, num_bytes, _HASHED_AT_ONCE_BYTES):
        digest.update(_read(fd, start + offset, min(_HASHED_AT_ONCE_BYTES, num_bytes - offset)))
    found: bytes = digest.digest()
    return found


def _add_bin(digest: _Digest, path: Path, *, whole: bool) -> None:
    """A pickle is never opened, only sampled: its size, and all of it or BIN_SAMPLES evenly spread pieces."""
    with path.open("rb") as file:
        fd, size_bytes = file.fileno(), os.fstat(file.fileno()).st_size
        digest.add(f"{path.name} {size_bytes}".encode())
        if whole:
            digest.add(_hash(fd, 0, size_bytes))
            return
        if size_bytes <= BIN_SAMPLES * SAMPLE_BYTES:
            digest.add(_read(fd, 0, size_bytes))
            return
        last = size_bytes - SAMPLE_BYTES
        for index in range(BIN_SAMPLES):
            digest.add(_read(fd, last * index // (BIN_SAMPLES - 1), SAMPLE_BYTES))


def _read(fd: int, start: int, num_bytes: int) -> bytes:
    """Exactly ``num_bytes`` from ``start``; pread may return fewer, at the end of the file none."""
    parts: list[bytes] = []
    while num_bytes > 0:
        part = os.pread(fd, num_bytes, start)
        if not part:
            raise ValueError("a weights file ends early")
        parts.append(part)
        start, num_bytes = start + len(part), num_bytes - len(part)
    return b"".join(parts)
