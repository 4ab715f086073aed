"""Digests of the blocks in one forward: what history must be, what has come of it, and what the new rows are.

History of the first forward is a request's hits, and their headers come with them; what later forwards load again is
known from the forwards before. With a prompt's last forward the headers of all that was sent to the decode engine go
there, too. A forward that fails changes nothing: rows of it that were pushed lie behind those that a digest covers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import PeerId
from dualpath.engine.integrity import Integrity
from dualpath.engine.prefill_batch import Batch, PrefillJob, blocks_used
from dualpath.store.header import BlockName
from dualpath.traffic.contract import Transfer, Units
from dualpath.traffic.manager import TrafficManager
from dualpath.traffic.staging import DEVICE, HEADERS, PAGES


class ForwardDigests:
    """Arrays are [layer, workspace block], and a block's header is in the page of its number.

    Model thread, but for what has to wait for bytes: that runs on the threads where they arrive.
    """

    def __init__(
        self, traffic: TrafficManager, integrity: Integrity, geometry: KvGeometry, batch: Batch, first_page: int
    ) -> None:
        """Raises KvCorruptError for a hit in our own buffer; nothing moves yet."""
        self._traffic, self._integrity, self._geometry = traffic, integrity, geometry
        self._batch, self._first_page = batch, first_page
        shape = geometry.num_layers, blocks_used(batch, geometry)
        self._expected, self._found, self._made = (np.zeros(shape, dtype=np.uint64) for _ in range(3))
        self._history_bytes, self._new_bytes = (np.zeros(shape[1], dtype=np.int64) for _ in range(2))
        for job, chunk in batch:
            num_done, end, first = job.num_done, job.num_done + chunk.num_new, chunk.first_block
            self._fill(self._history_bytes, first, range(geometry.blocks_for(num_done)), num_done)
            self._fill(self._new_bytes, first, range(num_done // geometry.block_tokens, geometry.blocks_for(end)), end)
            if job.digests is not None:
                self._expected[:, first : first + job.digests.shape[1]] = job.digests
            elif job.slots:
                hits = sorted(job.slots)
                headers = [integrity.slot_header(job.slots[block]) for block in hits]
                digests = integrity.digests_in(headers, [job.names[block] for block in hits])
                self._expected[:, [first + block for block in hits]] = digests.T
        self._history = np.flatnonzero(self._history_bytes)
        self.new_blocks = np.flatnonzero(self._new_bytes).astype(np.int32)

    def _fill(self, num_bytes: np.ndarray, first: int, blocks: range, num_tokens: int) -> None:
        """So many bytes of each of these blocks belong to the first ``num_tokens`` tokens."""
        rows = np.minimum(num_tokens - np.array(blocks) * self._geometry.block_tokens, self._geometry.block_tokens)
        num_bytes[first + blocks.start : first + blocks.stop] = rows * self._geometry.bytes_per_token_layer

    # -- history ------------------------------------------------------------------------------------------------------

    def load_headers(self, deadline_s: float) -> list[Transfer[int]]:
        """Of hits in decode buffers."""
        wanted: dict[PeerId, list[tuple[int, int, BlockName]]] = {}  # (page, slot, name)
        for job, chunk in self._batch:
            for block in sorted(_decode_hits(job, self._geometry)) if job.digests is None else ():
                page = self._first_page + chunk.first_block + block
                place = page, job.order.decode_slots[block], job.names[block]
                wanted.setdefault(job.order.decode_peer, []).append(place)
        transfers = []
        for peer, places in wanted.items():
            pages, slots, names = (list(column) for column in zip(*places, strict=True))
            after = partial(self._take_headers, pages, names)
            pull = self._traffic.pull(peer, PAGES, np.array(pages), HEADERS, np.array(slots), deadline_s, after)
            transfers.append(pull)
        return transfers

    def _take_headers(self, pages: Sequence[int], names: Sequence[BlockName]) -> None:
        digests = self._integrity.digests_in([self._traffic.page(page) for page in pages], names)
        self._expected[:, np.array(pages) - self._first_page] = digests.T

    def look(self, layer: int, blocks: Units, units: Units) -> None:
        """A layer's history has arrived."""
        digests = self._integrity.checks.digests(DEVICE, units, self._history_bytes[blocks])
        self._found[layer, blocks] = digests

    def compare(self, layer: int) -> None:
        """Raise KvCorruptError unless the layer's history, all of which has arrived, is what it must be."""
        wrong = self._found[layer, self._history] != self._expected[layer, self._history]
        if num_wrong := int(wrong.sum()):
            text = f"layer {layer}: {num_wrong} of {len(wrong)} blocks of history are not as they were made"
            raise self._integrity.checks.corrupt(text, num_wrong)

    # -- new rows -----------------------------------------------------------------------------------------------------

    def make(self, layer: int, units: Units) -> Transfer[int]:
        """Digest a layer's blocks with new rows, beside the compute. ``units``: where ``new_blocks`` lie."""

        def work() -> None:
            digests = self._integrity.checks.digests(DEVICE, units, self._new_bytes[self.new_blocks])
            self._made[layer, self.new_blocks] = digests

        return self._integrity.checks.submit(work)

    def push_headers(self, deadline_s: float) -> Iterator[tuple[PeerId, Transfer[int]]]:
        """Of prompts that are complete now, once every layer's digests are made."""
        self._expected[:, self.new_blocks] = self._made[:, self.new_blocks]
        pushes: dict[PeerId, tuple[list[int], list[int]]] = {}  # (pages, slots)
        for job, chunk in self._batch:
            if chunk.num_new < job.num_left:
                continue
            there = _decode_hits(job, self._geometry)
            for block in (block for block in range(len(job.names)) if block not in there):
                number = chunk.first_block + block
                header = self._integrity.header(job.names[block], self._expected[:, number])
                self._traffic.page(self._first_page + number)[:] = header
                pages, slots = pushes.setdefault(job.order.decode_peer, ([], []))
                pages.append(self._first_page + number)
                slots.append(job.order.decode_slots[block])
        for peer, (pages, slots) in pushes.items():
            yield peer, self._traffic.push(peer, PAGES, np.array(pages), HEADERS, np.array(slots), deadline_s)

    def keep(self) -> None:
        """The forward has succeeded: its requests' next one loads what was made now."""
        for job, chunk in self._batch:
            first, num_blocks = chunk.first_block, self._geometry.blocks_for(job.num_done + chunk.num_new)
            job.digests = self._expected[:, first : first + num_blocks].copy()


def _decode_hits(job: PrefillJob, geometry: KvGeometry) -> set[int]:
    """Hits that were read on the decode side: their headers came from storage with them."""
    return set(range(geometry.full_blocks_in(job.order.num_hit_tokens))) - set(job.slots)
