"""The two traffic classes as numbers: virtual lanes and weights of the paper, and their like on Ethernet.

Everything that is applied anywhere is derived from this file. Paper: arXiv 2602.21548, section 5 and appendix A.1.
"""

from __future__ import annotations

from collections.abc import Mapping

from dualpath.traffic.fabric.spec import TrafficClass

# InfiniBand, the paper's settings. Lanes 0, 1 and 3 are served from the high-priority table; lane 2 has no weight there
# and is served from the low-priority table: all of an idle link, a packet now and then of a busy one.
MAX_VLS = 4
HIGH_LIMIT = 240  # units of HIGH_LIMIT_UNIT_BYTES that high priority may send before low priority gets its turn
VLARB_HIGH: Mapping[int, int] = {0: 192, 1: 192, 2: 0, 3: 192}  # virtual lane -> weight
VLARB_LOW: Mapping[int, int] = {0: 192, 1: 192, 2: 64, 3: 192}
HIGH_LIMIT_UNIT_BYTES = 4096  # InfiniBand Architecture Specification, volume 1, 7.6.9: LimitOfHighPriority

# Which lane is whose. Lane 0 stays with the fabric's own datagrams (subnet administration, connection management),
# which use service level 0 and must not wait behind KV; lane 3 is the paper's third high-priority lane, free for other
# use.
LANE: Mapping[TrafficClass, int] = {TrafficClass.MODEL: 1, TrafficClass.KV: 2}
NUM_SERVICE_LEVELS = 16  # service levels 0-3 are the lanes; those that nobody gave a meaning are low priority

# Ethernet. Lane n is 802.1p priority n + 1: priority 0 stays lossy, since it is what unmarked packets have. DSCP is
# 8 x priority, the class selectors of RFC 2474, which NICs and switches map to that priority by default. 26, which UCX
# and many RoCE set-ups use when nobody says anything, thus falls into KV's class.
CNP_PRIORITY = 6  # congestion notification packets of DCQCN; the NIC's default
CNP_DSCP = 48
ECN_CAPABLE = 0b10  # ECT(0), RFC 3168: the low bits of the traffic class byte, so that switches may mark
MODEL_SHARE = 0.99  # of a contended link (paper, section 5)


def lossless_priorities() -> tuple[int, ...]:
    """The four priorities with flow control (paper, appendix A.1), one for each lane."""
    return tuple(lane + 1 for lane in range(MAX_VLS))


def priority(traffic_class: TrafficClass) -> int:
    """802.1p priority, and the number of the NIC's traffic class and queue."""
    return LANE[traffic_class] + 1


def dscp(priority_: int) -> int:
    return 8 * priority_


def traffic_class_byte(traffic_class: TrafficClass) -> int:
    """What UCX_IB_TRAFFIC_CLASS, NCCL_IB_TC and cma_roce_tos take: DSCP in the upper six bits, ECN in the lower two."""
    return dscp(priority(traffic_class)) << 2 | ECN_CAPABLE


def service_level_lanes() -> tuple[int, ...]:
    """Virtual lane of each service level, 0 to 15."""
    return tuple(level if level < MAX_VLS else LANE[TrafficClass.KV] for level in range(NUM_SERVICE_LEVELS))


def ets_weights() -> tuple[int, ...]:
    """Percent of each of the eight traffic classes under contention; they add up to 100.

    Ethernet's scheduler (IEEE 802.1Qaz) has weights only, no high limit: the model's class gets all but one percent for
    each other queue that shares the link, so MODEL : KV is 96 : 1. A class that is idle leaves its share to the others.
    """
    shared = (0, *lossless_priorities())
    model = priority(TrafficClass.MODEL)
    return tuple((100 - (len(shared) - 1) if p == model else 1) if p in shared else 0 for p in range(8))
