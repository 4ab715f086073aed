"""``dualpath why``: which resource binds, what the minute would have been otherwise, where a request's time went."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from dualpath.cli.command import add_command
from dualpath.config.fields import Options, setting
from dualpath.core.errors import ConfigError

if TYPE_CHECKING:
    from dualpath.gateway.verdict.change import ClusterLook
    from dualpath.sim.replay.minute import Outcome, WhatIf

_SERVER = "http://127.0.0.1:8000"


class _WhyOptions(Options):
    """Look at a running server twice and say which resource its requests wait for, with the numbers and the threshold
    that say so; that nothing binds; or which data is missing to tell. Then what its last minute would have been as
    Basic, as split and as Oracle, and what would help most, by replaying its requests in the simulator here.

    With a request's id (x-request-id of its answer): where its time went, beside others at the time.
    """

    what: str | None = setting(
        None,
        positional=True,
        none_means="the server of --url",
        metavar="URL|REQUEST_ID",
        help="of the server, or of a recent request of --url's",
    )
    url: str = setting(_SERVER, metavar="URL", help="the server, where no other is given")
    api_key: str | None = setting(
        None, metavar="KEY", none_means="$DUALPATH_API_KEY", help="if the server asks for one: an admin key"
    )
    interval_s: float = setting(3.0, minimum=0.5, maximum=3600, help="between the two looks")
    minute_s: float = setting(60.0, above=0, maximum=86400, help="how much of the past is replayed, at most")
    quick: bool = setting(False, help="the verdict alone: nothing is replayed")
    json: bool = setting(False, help="as one JSON object")


def add(verbs: Any) -> None:
    text = "say which resource of a running server binds, or why a request was slow"
    add_command(verbs, "why", text, _why, _WhyOptions)


def _why(options: _WhyOptions) -> int:
    key = options.api_key or os.environ.get("DUALPATH_API_KEY")
    if options.what is not None and not any(mark in options.what for mark in ":/"):  # no id has them
        return _request(options, options.what, key)
    from dualpath.gateway.verdict.client import take_look
    from dualpath.gateway.verdict.judge import judge

    url = (options.what or options.url).rstrip("/")
    before = take_look(url, key)
    time.sleep(options.interval_s)
    after = take_look(url, key)
    verdict = judge(before, after)
    if options.json:
        import msgspec

        found = msgspec.to_builtins(verdict)
        print(msgspec.json.encode(found | ({} if options.quick else {"what_if": _what_if(after, options)})).decode())
        return 0
    print(verdict.headline)
    for finding in verdict.findings[1:]:
        print(f"  also {finding.resource}: {finding.text}")
    for missing in verdict.missing:
        print(f"  missing: {missing}")
    if verdict.requests_in_phase:
        phases = ", ".join(f"{num:.1f} {phase}" for phase, num in verdict.requests_in_phase.items())
        print(f"  requests on average over {verdict.interval_s:.1f} s: {phases}", flush=True)
    if not options.quick:
        _print_what_if(_what_if(after, options))
    return 0


def _what_if(look: ClusterLook, options: _WhyOptions) -> WhatIf:
    from dualpath.sim.replay.minute import last_minute

    return last_minute(look.records or (), look.stats, options.minute_s)


def _print_what_if(answer: WhatIf) -> None:
    if answer.recorded is None:
        print(f"  no counterfactual: {answer.refusal}")
        return
    print(f"  {answer.num_requests} requests of the last minute took {_times(answer.recorded)}; simulated:")
    for outcome in answer.systems:
        if outcome is not answer.recorded:
            print(f"    as {outcome.what}: {_times(outcome)}")
    for outcome in answer.helps:
        print(f"    with {outcome.what}: {_times(outcome)}")
    if not answer.helps:
        print("    nothing that was tried makes them 5 % faster")
    print(f"    the minute as it was, simulated: {answer.error:+.0%} off; {'; '.join(answer.assumptions)}")


def _times(outcome: Outcome) -> str:
    return f"{outcome.latency_s:.2f} s on average, {outcome.ttft_s:.2f} s to the first token"


def _request(options: _WhyOptions, request_id: str, key: str | None) -> int:
    from dualpath.gateway.verdict.client import find_request, recent_requests
    from dualpath.gateway.verdict.request import tell

    url = options.url.rstrip("/")
    found = find_request(url, key, request_id)
    if not found.records:
        text = f"{options.url} knows no recent request {request_id} (does the key see it?)"
        raise ConfigError("; ".join((text, *found.lack())))
    others = recent_requests(url, key)
    story = tell(found.records[0], others.records, others.lack())
    if options.json:
        import msgspec

        print(msgspec.json.encode(story).decode())
        return 0
    print(story.headline)
    for phase in story.phases:
        bar = "#" * max(1, round(40 * phase.share))
        median = "" if phase.median_s is None else f"  (others: {phase.median_s:.3f})"
        print(f"  {phase.phase:12} {phase.time_s:9.3f} s {bar}{median}")
    for fact in story.facts:
        print(f"  {fact}")
    for missing in story.missing:
        print(f"  missing: {missing}")
    return 0
