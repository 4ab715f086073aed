"""Requests go through an engine's phases by legal ways only."""

from __future__ import annotations

import pytest

from dualpath.engine.phases import LEGAL, DecodePhase, PrefillPhase, entered


@pytest.mark.parametrize("phases", [PrefillPhase, DecodePhase])
def test_every_phase_can_end_and_an_ended_one_stays(phases: type[PrefillPhase] | type[DecodePhase]) -> None:
    for phase in phases:
        assert (phases.ENDED in LEGAL[phase]) == (phase is not phases.ENDED)
        with pytest.raises(ValueError, match=f"illegal transition ended -> {phase.value}"):
            entered(phases.ENDED, phase)


def test_nobody_runs_without_having_joined_and_chunks_wait_again() -> None:
    with pytest.raises(ValueError, match="illegal transition waiting -> running"):
        entered(DecodePhase.WAITING, DecodePhase.RUNNING)
    assert entered(PrefillPhase.COMPUTING, PrefillPhase.WAITING) is PrefillPhase.WAITING
