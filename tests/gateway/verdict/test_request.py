"""Where one request's time went, beside that of others."""

from __future__ import annotations

from dataclasses import replace

from dualpath.core.ids import RequestId
from dualpath.core.request import RequestRecord
from dualpath.gateway.verdict.request import tell

SLOW = RequestRecord(
    RequestId("slow"),
    1000.0,
    6400,
    6336,
    10,
    path="split",
    prefill_engine="p0",
    decode_engine="d1",
    storage_read_bytes={"prefill": 3_000_000, "decode": 1_500_000},
    outcome="finished",
    phases_s={"queued": 0.5, "reading": 8.0, "prefilling": 1.0, "decoding": 0.5},
)


def test_it_names_the_longest_phase_and_compares() -> None:
    others = [
        replace(SLOW, request_id=RequestId(str(i)), arrived_unix_s=1000.0 + i, phases_s={"reading": 2.0})
        for i in range(3)
    ]
    far = replace(SLOW, request_id=RequestId("far"), arrived_unix_s=2000.0, phases_s={"reading": 80.0})
    story = tell(SLOW, [SLOW, *others, far])
    assert story.headline == (
        "finished; 80% of its 10.00 s reading: its hit was read from storage; 4.0 times as long as others at the time"
    )
    assert [phase.phase for phase in story.phases] == ["queued", "reading", "prefilling", "decoding"]
    assert story.phases[1].median_s == 2.0  # of those at the time, and not of itself
    assert "path split: read 3.0 MB by the prefill side (p0), 1.5 MB by the decode side (d1)" in story.facts


def test_what_went_wrong_is_said() -> None:
    failed = replace(SLOW, outcome="failed", error="d1 is lost", num_retries=2, num_recomputed_blocks=3)
    story = tell(failed, [])
    assert story.headline.endswith("d1 is lost")
    assert story.phases[0].median_s is None
    assert any("resumed 2 times" in fact for fact in story.facts)
    assert any("3 blocks" in fact for fact in story.facts)


def test_a_request_that_has_just_come() -> None:
    assert "nothing has happened" in tell(replace(SLOW, outcome="running", phases_s={}), []).headline
