"""Compares KV on a device with the digests that were made with it, and makes headers. Reads: ``traffic.memory``.

A header names one block of one prompt by its key, so a block that is stale, torn or somebody else's is found as a
flipped bit is. Whatever does not fit is a KvCorruptError, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dualpath.core.errors import BlockCorruptError, KvCorruptError
from dualpath.core.ids import BlockKey
from dualpath.core.keys import Namespace, child_key, root_key
from dualpath.core.request import Request
from dualpath.store.header import HEADER_BYTES, BlockName, Digests, check_header, make_header
from dualpath.traffic.contract import Units
from dualpath.traffic.manager import TrafficManager
from dualpath.traffic.staging import DEVICE


class Integrity:
    """One engine's; any thread."""

    def __init__(self, traffic: TrafficManager, namespace: Namespace) -> None:
        self.checks = traffic.checks
        self._traffic, self._namespace, self._digest = traffic, namespace, namespace.digest
        self._geometry = namespace.geometry

    def names(
        self, request: Request, keys: Sequence[BlockKey], root: BlockKey | None = None, namespace_digest: bytes = b""
    ) -> list[BlockName]:
        """The prompt's blocks, by the keys of its Full Blocks; the last one may be partly filled.

        ``root`` is the first one's parent, where it is not that of the engine's own namespace.
        """
        tokens, block_tokens = request.prompt_token_ids, self._geometry.block_tokens
        chain = [root or root_key(self._namespace, request.cache_salt), *keys]
        names = [BlockName(key, parent, block_tokens, namespace_digest) for parent, key in pairwise(chain)]
        rest = tokens[len(keys) * block_tokens :]
        if len(rest) >= block_tokens:
            raise ValueError(f"{len(keys)} keys for a prompt of {len(tokens)} tokens")
        if not rest:
            return names
        return [*names, BlockName(child_key(chain[-1], rest), chain[-1], len(rest), namespace_digest)]

    def digests_in(self, headers: Sequence[memoryview], names: Sequence[BlockName]) -> Digests:
        """[blocks, layers], as the headers have them. Raises KvCorruptError for one that is not what its name says."""
        digests = np.empty((len(names), self._geometry.num_layers), dtype=np.uint64)
        for row, header, name in zip(digests, headers, names, strict=True):
            try:
                row[:] = self._digests(header, name)
            except BlockCorruptError as error:
                raise self.checks.corrupt(str(error)) from None
        return digests

    def _digests(self, header: memoryview, name: BlockName) -> Digests:
        digest = name.namespace_digest or self._digest
        found = check_header(header, digest, self._geometry, name.key, name.num_tokens, name.parent)
        return found.digests

    def slot_header(self, slot: int) -> memoryview:
        return self._traffic.slot_view(slot)[:HEADER_BYTES]

    def header(self, name: BlockName, digests: Digests) -> bytes:
        return make_header(name.namespace_digest or self._digest, name, self._geometry, digests)

    def num_bytes(self, num_tokens: int) -> int:
        """Of so many tokens in a Layer Block."""
        return num_tokens * self._geometry.bytes_per_token_layer

    def compare(self, slots: Sequence[int], names: Sequence[BlockName], units: Units) -> None:
        """Raise KvCorruptError unless these whole blocks of device memory are what the slots' headers say.

        Slots that are not right are suspected.
        """
        try:
            expected = self.digests_in([self.slot_header(slot) for slot in slots], names)
        except KvCorruptError:
            self._traffic.slots.suspect(s for s, name in zip(slots, names, strict=True) if not self._names(s, name))
            raise
        num_bytes = np.repeat([self.num_bytes(name.num_tokens) for name in names], self._geometry.num_layers)
        is_wrong = self.checks.digests(DEVICE, units, num_bytes).reshape(expected.shape) != expected
        num_wrong = int(is_wrong.sum())
        if num_wrong:
            self._traffic.slots.suspect(s for s, wrong in zip(slots, is_wrong.any(axis=1), strict=True) if wrong)
            raise self.checks.corrupt(f"{num_wrong} of {len(units)} Layer Blocks are not as they were made", num_wrong)

    def _names(self, slot: int, name: BlockName) -> bool:
        """Is the slot's header this name's?"""
        try:
            self._digests(self.slot_header(slot), name)
        except BlockCorruptError:
            return False
        return True

    async def device_header(self, name: BlockName, units: Units) -> bytes:
        """Of a block whose bytes were made in device memory."""
        found: list[Digests] = []
        num_bytes = np.full(len(units), self.num_bytes(name.num_tokens))
        await self.checks.submit(lambda: found.append(self.checks.digests(DEVICE, units, num_bytes)))
        return self.header(name, found[0])
