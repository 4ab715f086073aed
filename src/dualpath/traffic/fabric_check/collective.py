"""Model execution's traffic on one rank: timed all-to-alls, by NCCL where there is CUDA, else by gloo."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dualpath.core.errors import DualPathError
from dualpath.traffic.fabric_check.plan import CheckPlan

Store = Any  # torch.distributed.Store, which torch does not export by type
_REAL_TIME_PRIORITY = 10
_WARM_UP_OPS = 50


class Collective:
    """A member of the group. Use from one thread; raises DualPathError where the others do not come along."""

    def __init__(self, plan: CheckPlan, rank: int, store: Store) -> None:
        self._plan = plan
        is_cuda = torch.cuda.is_available()
        self._device = torch.device("cuda", 0) if is_cuda else torch.device("cpu")
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=dist.PrefixStore("collective", store),  # type: ignore[attr-defined]
            rank=rank,
            world_size=plan.world,
            timeout=timedelta(seconds=plan.deadline_s),
        )
        part = plan.message_bytes // plan.world * plan.world
        self._source = torch.zeros(part, dtype=torch.uint8, device=self._device)
        self._target = torch.empty_like(self._source)
        self.run(_WARM_UP_OPS)

    def run(self, num_ops: int) -> list[float]:
        """One collective each period, from a common start; seconds that each took here. A late one delays the next."""
        latencies_s = []
        try:
            self.barrier()
            next_s = time.perf_counter()
            for _ in range(num_ops):
                time.sleep(max(0.0, next_s - time.perf_counter()))
                start_s = time.perf_counter()
                dist.all_to_all_single(self._target, self._source)
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
                end_s = time.perf_counter()
                latencies_s.append(end_s - start_s)
                next_s = max(next_s + self._plan.period_s, end_s)
        except RuntimeError as error:
            raise DualPathError(f"a collective failed: {' '.join(str(error).split())}") from None
        return latencies_s

    def barrier(self) -> None:
        try:
            dist.barrier()
        except RuntimeError as error:
            raise DualPathError(f"a rank did not come to the barrier: {' '.join(str(error).split())}") from None

    def close(self) -> None:
        dist.destroy_process_group()


def take_real_time() -> bool:
    """Let this process's threads made from now on run before all ordinary ones, so that a busy CPU is not measured as a
    busy network. False where the system does not permit it.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_REAL_TIME_PRIORITY))
    except (OSError, AttributeError):
        return False
    return True
