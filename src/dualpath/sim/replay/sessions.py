"""From records of requests to agents: who follows whom, after how long, and what was on storage before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dualpath.core.request import RequestRecord
from dualpath.sim.requests.agent import Agent
from dualpath.trace.trajectory import Round, Trajectory

FINISHED = "finished"
_CLOCK_S = 0.005  # moments are Unix times, lengths are not


@dataclass(frozen=True, slots=True)
class Session:
    """Turns of one agent: each is sent some time after the answer to the one before. ``start_s`` on records' clock."""

    records: tuple[RequestRecord, ...]
    rounds: tuple[Round, ...]

    @property
    def start_s(self) -> float:
        return self.records[0].arrived_unix_s

    def agent(self, index: int) -> Agent:
        """With the first prompt's hit on storage already."""
        agent = Agent(index, self.rounds)
        agent.chain.stored = self.records[0].num_hit_tokens
        return agent

    def trajectory(self, index: int) -> Trajectory:
        return Trajectory(id=str(index), rounds=self.rounds)


def sessions_of(records: Sequence[RequestRecord]) -> list[Session]:
    """Of finished requests, by arrival. A turn has one successor: the first of several; others begin sessions."""
    known: dict[str, RequestRecord] = {
        record.request_id: record for record in sorted(records, key=lambda record: record.arrived_unix_s)
    }
    followers: dict[str, RequestRecord] = {}
    for record in known.values():
        before = known.get(record.follows) if record.follows is not None else None
        if before is not None and before.request_id not in followers and _is_next(before, record):
            followers[before.request_id] = record
    later = {record.request_id for record in followers.values()}
    found = []
    for record in known.values():
        if record.request_id in later:
            continue
        chain = [record]
        while (follower := followers.get(chain[-1].request_id)) is not None:
            chain.append(follower)
        found.append(Session(tuple(chain), tuple(_rounds(chain))))
    return found


def ended_s(record: RequestRecord) -> float:
    """On the records' clock."""
    assert record.total_s is not None
    return record.arrived_unix_s + record.total_s


def _is_next(before: RequestRecord, after: RequestRecord) -> bool:
    """Sent after the answer, and longer than it."""
    grows = after.num_prompt_tokens > before.num_prompt_tokens + before.num_generated_tokens
    return grows and after.arrived_unix_s >= ended_s(before) - _CLOCK_S


def _rounds(chain: Sequence[RequestRecord]) -> list[Round]:
    rounds, context, end_s = [], 0, chain[0].arrived_unix_s
    for record in chain:
        think_s = max(0.0, record.arrived_unix_s - end_s)
        rounds.append(Round(record.num_prompt_tokens - context, max(1, record.num_generated_tokens), think_s))
        context, end_s = record.num_prompt_tokens + record.num_generated_tokens, ended_s(record)
    return rounds
