"""The replay on the page: when it is asked for, once for all, in every page's stream, and what a failure looks like."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.browser import CHROMIUM, browsing
from tests.gateway.conftest import Serving
from tests.gateway.fakes import FakeBackend
from tests.gateway.page.test_live import KEYS, SilentBackend, events

from dualpath.core.errors import EngineLostError
from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterStats
from dualpath.gateway.app import create_app
from dualpath.gateway.page.minute_replay import KEEP_S, MinuteReplay
from dualpath.gateway.text.tokenizer import Tokenizer


class Replayer:
    def __init__(self, answer: bytes | Exception = b'{"refusal":"too few"}') -> None:
        self.answer = answer
        self.may_end = asyncio.Event()
        self.num_asked = self.num_ended = 0

    async def __call__(self, records: Sequence[RequestRecord], stats: ClusterStats) -> bytes:
        self.num_asked += 1
        try:
            await self.may_end.wait()
        finally:
            self.num_ended += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def until_done(replay: MinuteReplay) -> None:
    async with asyncio.timeout(5):
        while replay.state().is_running:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_one_at_a_time_and_the_answer_is_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    replayer = Replayer()
    replay = MinuteReplay(FakeBackend(), replayer)
    assert replay.state().age_s is None
    for _ in range(3):
        replay.ask()
        await asyncio.sleep(0.001)
    assert (replayer.num_asked, replay.state().is_running) == (1, True)
    replayer.may_end.set()
    await until_done(replay)
    assert bytes(replay.state().answer or b"") == replayer.answer
    replay.ask()
    assert not replay.state().is_running
    monkeypatch.setattr("dualpath.gateway.page.minute_replay.KEEP_S", -1.0)
    replay.ask()
    await until_done(replay)
    assert replayer.num_asked == 2
    assert KEEP_S > 0


class LostBackend(FakeBackend):
    async def stats(self) -> ClusterStats:
        raise EngineLostError("pe0 is gone")


@pytest.mark.parametrize(
    ("backend", "replayer", "error"),
    [
        (FakeBackend(), Replayer(OSError("the replay ended with SIGXCPU")), "the replay ended with SIGXCPU"),
        (FakeBackend(), Replayer(TimeoutError()), "it took too long"),
        (FakeBackend(), Replayer(ValueError("nobody foresaw it")), "internal error"),
        (LostBackend(), Replayer(), "pe0 is gone"),
        (SilentBackend(), Replayer(), "it took too long"),
        (FakeBackend(), None, "nothing to replay with"),
    ],
)
async def test_a_failure_is_said(
    backend: FakeBackend, replayer: Replayer | None, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualpath.gateway.page.minute_replay._LOOK_TIMEOUT_S", 0.05)
    if replayer is not None:
        replayer.may_end.set()
    replay = MinuteReplay(backend, replayer)
    replay.ask()
    await until_done(replay)
    assert error in (replay.state().error or "")
    assert replay.state().answer is None


async def test_the_end_of_the_app_ends_it(model_dir: Path) -> None:
    replayer = Replayer()
    app = create_app(FakeBackend(), Tokenizer.load(model_dir), replay=replayer)
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")
    async with app.router.lifespan_context(app), http:
        await http.post("/dualpath/replay")
        while not replayer.num_asked:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert replayer.num_ended == 0
    assert replayer.num_ended == 1


async def test_every_page_sees_it(serving: Serving) -> None:
    replayer = Replayer(b'{"refusal":"too few requests"}')
    replayer.may_end.set()
    async with serving(FakeBackend(), replay=replayer) as url, httpx.AsyncClient() as client:
        (before,) = await events(url, 1)
        assert (await client.post(f"{url}/dualpath/replay")).status_code == 202
        seen: dict[str, Any] = {}
        for _ in range(5):
            seen = (await events(url, 2))[1]["replay"]
            if seen["answer"]:
                break
    assert before["replay"] == {"is_running": False, "answer": None, "error": None, "age_s": None}
    assert seen["answer"] == {"refusal": "too few requests"}


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("user", 403), ("boss", 202)])
async def test_it_needs_an_admin_key(key: str | None, status: int, serving: Serving) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with serving(FakeBackend(), settings=KEYS) as url, httpx.AsyncClient(headers=headers) as client:
        assert (await client.post(f"{url}/dualpath/replay")).status_code == status


ANSWER = b"""{"refusal": null, "num_requests": 12, "error": -0.03, "assumptions": ["costs are fitted"],
"recorded": {"what": "basic", "ttft_s": 1.0, "latency_s": 4.0, "finished_s": 9.0},
"systems": [{"what": "basic", "ttft_s": 1.0, "latency_s": 4.0, "finished_s": 9.0},
{"what": "oracle", "ttft_s": 0.5, "latency_s": 2.0, "finished_s": 9.0}],
"helps": [{"what": "<b>one more</b> node", "ttft_s": 0.5, "latency_s": 3.0, "finished_s": 9.0}]}""".replace(
    b"\n", b" "
)  # one line, as an event's data are


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: nobody pressed the button")
@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (
            ANSWER,
            ["basic, as it was", "as oracle", "with <b>one more</b> node", "4.00 s, first token 1.00 s", "-3 % off"],
        ),
        (b'{"refusal": "the rate of the storage NICs is not known"}', ["cannot tell", "the rate of the storage NICs"]),
        (OSError("the replay ended with SIGXCPU"), ["no answer: the replay ended with SIGXCPU"]),
    ],
)
async def test_the_button_gets_it(answer: bytes | Exception, shown: list[str], serving: Serving) -> None:
    replayer = Replayer(answer)
    async with serving(FakeBackend(), replay=replayer) as url, browsing() as page:
        await page.open(f"{url}/dualpath")
        await page.until('$("model").textContent && !$("replay").disabled')
        await page.value('$("replay").click()')
        await page.until('document.body.innerText.includes("replays it") && $("replay").disabled')
        replayer.may_end.set()
        for part in shown:
            await page.until(f"document.body.innerText.includes({part!r})")
        assert page.complaints == []
