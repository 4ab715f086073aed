"""What engines leave behind when they are closed: nothing that moves."""

from __future__ import annotations

import pytest
from tests.engine.pair import Pair, prompt_of, run

from dualpath.core.errors import TransferError
from dualpath.core.ids import PeerId


def test_a_closed_engine_moves_nothing_any_more() -> None:
    pairs: list[Pair] = []

    async def scenario(pair: Pair) -> None:
        pairs.append(pair)
        await pair.ask(prompt_of(9))

    run(scenario)
    for engine in (pairs[0].prefill, pairs[0].decode):
        with pytest.raises(TransferError, match="not running"):
            engine.traffic.remove_peer(PeerId("somebody.1"))
