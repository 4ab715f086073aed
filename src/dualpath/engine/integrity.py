"""End to end: KV is used, and stored, only if it is as it was made. The headers that come with blocks say how that was.

A header names one block of one prompt by its key, so a block that is stale, torn or somebody else's is found as a
flipped bit is. Whatever does not fit is a KvCorruptError, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dualpath.core.errors import BlockCorruptError
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

    def names(self, request: Request, keys: Sequence[BlockKey]) -> list[BlockName]:
        """The prompt's blocks, by the keys of its Full Blocks; the last one may be partly filled."""
        tokens, block_tokens = request.prompt_token_ids, self._geometry.block_tokens
        chain = [root_key(self._namespace, request.cache_salt), *keys]
        names = [BlockName(key, parent, block_tokens) for parent, key in pairwise(chain)]
        rest = tokens[len(keys) * block_tokens :]
        if len(rest) >= block_tokens:
            raise ValueError(f"{len(keys)} keys for a prompt of {len(tokens)} tokens")
        return [*names, BlockName(child_key(chain[-1], rest), chain[-1], len(rest))] if rest else names

    def digests_in(self, headers: Sequence[memoryview], names: Sequence[BlockName]) -> Digests:
        """[blocks, layers], as the headers have them. Raises KvCorruptError for one that is not what its name says."""
        digests = np.empty((len(names), self._geometry.num_layers), dtype=np.uint64)
        for row, header, name in zip(digests, headers, names, strict=True):
            try:
                found = check_header(header, self._digest, self._geometry, name.key, name.num_tokens, name.parent)
            except BlockCorruptError as error:
                raise self.checks.corrupt(str(error)) from None
            row[:] = found.digests
        return digests

    def slot_header(self, slot: int) -> memoryview:
        return self._traffic.slot_view(slot)[:HEADER_BYTES]

    def header(self, name: BlockName, digests: Digests) -> bytes:
        return make_header(self._digest, name, self._geometry, digests)

    def num_bytes(self, num_tokens: int) -> int:
        """Of so many tokens in a Layer Block."""
        return num_tokens * self._geometry.bytes_per_token_layer

    def compare(self, slots: Sequence[int], names: Sequence[BlockName], units: Units) -> None:
        """Raise KvCorruptError unless these whole blocks of device memory are what the slots' headers say."""
        expected = self.digests_in([self.slot_header(slot) for slot in slots], names)
        num_bytes = np.repeat([self.num_bytes(name.num_tokens) for name in names], self._geometry.num_layers)
        num_wrong = int((self.checks.digests(DEVICE, units, num_bytes) != expected.reshape(-1)).sum())
        if num_wrong:
            raise self.checks.corrupt(f"{num_wrong} of {len(units)} Layer Blocks are not as they were made", num_wrong)

    async def device_header(self, name: BlockName, units: Units) -> bytes:
        """Of a block whose bytes were made in device memory."""
        found: list[Digests] = []
        num_bytes = np.full(len(units), self.num_bytes(name.num_tokens))
        await self.checks.submit(lambda: found.append(self.checks.digests(DEVICE, units, num_bytes)))
        return self.header(name, found[0])
