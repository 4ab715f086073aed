"""Which engine is next, by load as in the paper or each in turn as in the systems it is compared with.

The policies are pure functions; what a rotation has to remember is kept here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dualpath.core.ids import EngineId
from dualpath.engine.api import EngineInfo
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.decode_choice import choose_group, choose_group_in_turn
from dualpath.scheduler.prefill_choice import choose_prefill, choose_prefill_in_turn
from dualpath.scheduler.snapshot import EngineSnapshot, GroupId, group_of
from dualpath.scheduler.systems import Assignment


@dataclass(slots=True)
class Chooser:
    """Event loop only."""

    config: SchedulerConfig
    prefill_turn: int = 0  # requests given out in turn so far
    decode_turn: int = 0

    def group_id(self, info: EngineInfo) -> GroupId:
        """Decode engines with one private queue: those of a node; in turn, every engine has its own."""
        if self.config.decode_choice is Assignment.ROUND_ROBIN:
            return GroupId(info.engine_id)
        return group_of(info.node_id, info.role)

    def group(self, loads: Mapping[GroupId, int]) -> GroupId | None:
        """The decode group for the next request, by each group's tokens; None when there is none."""
        if self.config.decode_choice is Assignment.LOAD:
            return choose_group(loads)
        chosen = choose_group_in_turn(list(loads), self.decode_turn)
        self.decode_turn += chosen is not None
        return chosen

    def prefill(self, engines: Sequence[EngineSnapshot]) -> EngineId | None:
        """The prefill engine for the next request; None when all are overloaded."""
        if self.config.prefill_choice is Assignment.LOAD:
            return choose_prefill(engines, self.config.prefill_limits)
        chosen = choose_prefill_in_turn(engines, self.config.prefill_limits, self.prefill_turn)
        self.prefill_turn += chosen is not None
        return chosen
