"""What is stored: for each weights a chain of whole blocks for every agent; and what goes where there is no room.

Blocks of other weights are never found, and come back with their weights. The order of eviction is the live index's
(``core.eviction_queue``): blocks of weights that requests have not used for longest first, then the chain that was used
least recently, from its end. A chain that a request builds on stays.
"""

from __future__ import annotations

from collections.abc import Sequence

from dualpath.core.eviction_queue import EvictionQueue, Shelf
from dualpath.core.ids import BlockKey
from dualpath.sim.requests.agent import Agent, Chain
from dualpath.sim.requests.request import Request


class Storage:
    """One cluster's."""

    def __init__(self, agents: Sequence[Agent], capacity_tokens: int | None) -> None:
        """``capacity_tokens``: whole blocks'; None: room for all."""
        self._agents, self._capacity_tokens = agents, capacity_tokens
        self._shelf = Shelf(b"0", 0)
        self._shelves = {0: self._shelf}
        self._weights = 0
        self._former: dict[int, dict[int, Chain]] = {}  # of other weights, by their number and by agent
        self._chains: dict[BlockKey, Chain] = {}  # that may be evicted; none where there is room for all
        self._queue: EvictionQueue[Chain] = EvictionQueue(self._chains, _may_go)
        self._num_keys = self._num_uses = 0
        self.used_tokens = self.evicted_tokens = 0
        for agent in agents:
            agent.chain.shelf = self._shelf

    def begin(self, request: Request) -> None:
        """Its hit is in use from now on."""
        if self._capacity_tokens is not None:
            self._touch(request.agent.chain)

    def end(self, agent: Agent) -> None:
        """Its request builds on its chain no longer."""
        if self._capacity_tokens is not None and agent.chain.stored:
            self._queue.offer(agent.chain)

    def grow(self, agent: Agent, num_tokens: int) -> None:
        """So many are stored now, more than before."""
        chain = agent.chain
        added = num_tokens - chain.stored
        chain.stored = num_tokens
        if self._capacity_tokens is None:
            return
        if chain.key not in self._chains:
            self._num_keys += 1
            chain.key = BlockKey(self._num_keys.to_bytes(8, "big"))
            self._chains[chain.key] = chain
        self._touch(chain)
        self.used_tokens += added
        self._evict_to(self._capacity_tokens)

    def use_weights(self, number: int) -> None:
        """What is stored from now on is theirs, and only that is found."""
        former = self._former[self._weights] = {agent.index: agent.chain for agent in self._agents}
        self._weights = number
        shelf = self._shelves.setdefault(number, Shelf(str(number).encode(), 0))
        if shelf is not self._shelf:
            shelf.use_after(self._shelf)
            self._shelf = shelf
        known = self._former.pop(number, {})
        for agent in self._agents:
            agent.chain = known.get(agent.index) or Chain(agent, shelf)
        if self._capacity_tokens is not None:
            for chain in former.values():
                if chain.stored:
                    self._queue.offer(chain)

    def wipe(self) -> None:
        """Nothing is stored any more."""
        self._former.clear()
        self._chains.clear()
        self._queue.clear()
        self.used_tokens = 0
        for agent in self._agents:
            agent.chain = Chain(agent, self._shelf)

    def check_integrity(self) -> None:
        """Raise AssertionError unless what is counted is what there is."""
        if self._capacity_tokens is not None:
            assert self.used_tokens == sum(chain.stored for chain in self._chains.values())
            self._queue.check_integrity()

    def _touch(self, chain: Chain) -> None:
        self._num_uses += 1
        chain.last_use = self._num_uses

    def _evict_to(self, capacity_tokens: int) -> None:
        while self.used_tokens > capacity_tokens and not self._queue.is_empty:
            chain = self._queue.take()
            if chain is None:
                continue
            gone = min(chain.stored, self.used_tokens - capacity_tokens)
            chain.stored -= gone
            self.used_tokens -= gone
            self.evicted_tokens += gone
            if chain.stored:
                self._queue.offer(chain)
            else:
                del self._chains[chain.key]


def _may_go(chain: Chain) -> bool:
    """Unless a request builds on it."""
    request = chain.agent.request
    return request is None or request.is_mixed or chain is not chain.agent.chain
