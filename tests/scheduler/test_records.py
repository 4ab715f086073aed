"""Records are kept, what they are about is not: prompts are a thousand times larger."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from tests.scheduler.cluster import cluster, expected
from tests.scheduler.fixtures import make_request
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.errors import EngineLostError
from dualpath.core.request import Request
from dualpath.scheduler.attempt import Attempt
from dualpath.scheduler.blocks import BlockHashes, WriteLedger
from dualpath.scheduler.job import Job


def alive() -> list[Any]:
    """Everything that has a prompt."""
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, (Request, Job, BlockHashes, Attempt, WriteLedger))]


def test_nothing_but_its_record_is_kept_of_a_request_that_is_over() -> None:
    async def scenario() -> None:
        before = alive()  # other tests' errors keep theirs
        known = {id(thing) for thing in before}
        async with cluster() as c:
            c.prefill[0].faults["batch"].append(EngineLostError("dropped"))
            assert await c.run(make_request("finished")) == expected(make_request())
            c.prefill[0].faults["batch"].extend([EngineLostError("dropped")] * 4)
            failed = await asyncio.gather(c.run(make_request("failed")), return_exceptions=True)
            assert isinstance(failed[0], EngineLostError)
            del failed
            cancelled = c.start(make_request("cancelled", max_tokens=400))
            await asyncio.sleep(0.2)
            cancelled.cancel()
            await asyncio.gather(cancelled, return_exceptions=True)
            del cancelled
            await c.quiet()
            for engine in (*c.prefill, *c.decode):
                engine.faults.clear()
            assert [record.outcome for record in c.service.recent(9)] == ["cancelled", "failed", "finished"]
            assert not [thing for thing in alive() if id(thing) not in known]

    run_virtual(scenario())


def test_a_running_requests_record_is_as_of_now_and_the_same_object_at_its_end() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            heard = []
            c.service.on_finished(heard.append)
            request = make_request(max_tokens=50)
            task = c.start(request)
            await asyncio.sleep(0.1)
            record = c.record(request)
            assert record.outcome == "running"
            assert 1 < record.num_generated_tokens < 50
            assert record.tpot_s is not None
            assert [(span.start, span.end) for span in record.weight_versions] == [(0, record.num_generated_tokens)]
            assert sum(record.phases_s.values()) > 0.0
            await task
            assert c.record(request) is record
            assert heard == [record]
            assert record.outcome == "finished"

    run_virtual(scenario())
