"""A link shared fairly by the flows of a class, and by priority between two classes, as a compute NIC is (section 5).

Fluid model of InfiniBand's virtual lanes (arXiv 2602.21548, section 5 and A.1): under contention the collectives of
model execution get about 99 % of the bandwidth, KV the rest; idle bandwidth is anybody's, and KV never starves. Within
a class every flow has an equal share. Time is kept for each class as bytes served per flow: O(log flows) for each.
"""

from __future__ import annotations

import heapq
import math
from enum import Enum

from dualpath.sim.engines.collectives import MODEL_SHARE


class Traffic(Enum):
    MODEL = 0  # collectives of model execution
    KV = 1  # everything else


class _Lane:
    """The flows of one class."""

    __slots__ = ("flows", "served_bytes")

    def __init__(self) -> None:
        self.served_bytes = 0.0  # to each flow, since the lane was last empty
        self.flows: list[tuple[float, int, object]] = []  # heap of (served_bytes at its end, order, name)


class FairLink:
    """Call ``start`` and ``finish`` with times that never go back; flows end at ``next_end_s``, not before."""

    def __init__(self, bytes_per_s: float, model_share: float = MODEL_SHARE) -> None:
        if not (bytes_per_s > 0 and 0 < model_share < 1):
            raise ValueError(f"a link needs a positive rate and a share between 0 and 1: {bytes_per_s}, {model_share}")
        self.bytes_per_s = bytes_per_s
        self.num_bytes = 0.0  # of flows that were started
        self._shares = {Traffic.MODEL: model_share, Traffic.KV: 1 - model_share}
        self._lanes = {traffic: _Lane() for traffic in Traffic}
        self._now_s = 0.0
        self._order = 0

    def start(self, now_s: float, num_bytes: float, traffic: Traffic, name: object) -> None:
        self._advance(now_s)
        lane = self._lanes[traffic]
        if not lane.flows:
            lane.served_bytes = 0.0
        self._order += 1
        self.num_bytes += num_bytes
        heapq.heappush(lane.flows, (lane.served_bytes + num_bytes, self._order, name))

    def next_end_s(self) -> float:
        """When the next flow ends if none starts before; inf: there is none."""
        ends = [self._end_s(traffic) for traffic, lane in self._lanes.items() if lane.flows]
        return min(ends, default=math.inf)

    def finish(self, now_s: float) -> list[object]:
        """The flows that have ended by now, in order of their ends within each class."""
        ended = []
        while (end_s := self.next_end_s()) <= now_s:
            traffic = min((t for t, lane in self._lanes.items() if lane.flows), key=self._end_s)
            self._advance(end_s)
            lane = self._lanes[traffic]
            lane.served_bytes, _, name = heapq.heappop(lane.flows)
            ended.append(name)
        self._advance(now_s)
        return ended

    def _end_s(self, traffic: Traffic) -> float:
        lane = self._lanes[traffic]
        return self._now_s + max(0.0, lane.flows[0][0] - lane.served_bytes) / self._flow_rate(traffic)

    def _flow_rate(self, traffic: Traffic) -> float:
        """Bytes per second of each flow of the class."""
        is_contended = all(lane.flows for lane in self._lanes.values())
        share = self._shares[traffic] if is_contended else 1.0
        return share * self.bytes_per_s / len(self._lanes[traffic].flows)

    def _advance(self, now_s: float) -> None:
        elapsed_s = now_s - self._now_s
        if elapsed_s < 0:
            raise ValueError(f"time went back from {self._now_s} s to {now_s} s")
        rates = {traffic: self._flow_rate(traffic) for traffic, lane in self._lanes.items() if lane.flows}
        for traffic, rate in rates.items():
            self._lanes[traffic].served_bytes += elapsed_s * rate
        self._now_s = now_s
