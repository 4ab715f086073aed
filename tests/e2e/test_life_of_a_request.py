"""docs/architecture.md tells which modules a request passes to its first token: a profile of one enters all of them."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest

import dualpath
from dualpath.bench.server import store_url
from dualpath.cluster.embedded import EmbeddedCluster
from dualpath.config import GatewayConfig
from dualpath.serving.serve import serve_cluster
from tests.e2e.cluster_kit import settings

PACKAGE = Path(dualpath.__file__).parent
PAGE = (PACKAGE.parents[1] / "docs/architecture.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## The life of a request")[2].partition("\n## ")[0]
NAMED = {path for row in SECTION.splitlines() if row.startswith("|") for path in re.findall(r"`([\w/]+\.py)`", row)}
KEY = {"Authorization": "Bearer alice"}
BODY = {
    "model": "llama",
    "messages": [{"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 6}],
    "max_tokens": 24,
    "temperature": 0,
    "stream": True,
}


class Entered:
    """Files of ours in which a function was called while ``is_on``, in whatever thread was begun meanwhile."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.is_on = False

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if self.is_on and event == "call":
            self.files.add(frame.f_code.co_filename)

    def modules(self) -> set[str]:
        paths = [Path(file) for file in self.files]
        return {str(path.relative_to(PACKAGE)) for path in paths if path.is_relative_to(PACKAGE)}


@pytest.fixture
def entered() -> Iterator[Entered]:
    profile = Entered()
    threading.setprofile(profile)
    sys.setprofile(profile)
    yield profile
    sys.setprofile(None)
    threading.setprofile(None)


@asynccontextmanager
async def server(model_dir: Path, directory: Path) -> AsyncIterator[str]:
    """All engines in this process, blocks in files, a key."""
    config = replace(settings(model_dir, store_url(directory)), gateway=GatewayConfig(port=0, api_keys=("alice",)))
    stop = asyncio.Event()
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        serve_cluster(
            config,
            EmbeddedCluster(config, progress=lambda _: None),
            stop=stop,
            on_started=lambda: None,
            on_listening=lambda host, port: listening.set_result(f"http://{host}:{port}"),
            closing_s=lambda: 10.0,
        )
    )
    try:
        await asyncio.wait([serving, listening], return_when=asyncio.FIRST_COMPLETED)
        assert not serving.done(), serving.exception()
        yield listening.result()
    finally:
        stop.set()
        await serving


async def answer(http: httpx.AsyncClient, on_text: Callable[[], None]) -> None:
    async with http.stream("POST", "/v1/chat/completions", json=BODY, headers=KEY) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                on_text()


async def test_a_request_enters_the_modules_that_are_named(
    tiny_model_dir: Callable[[str], Path], tmp_path: Path, entered: Entered
) -> None:
    async with server(tiny_model_dir("llama"), tmp_path / "kv") as url, httpx.AsyncClient(base_url=url) as http:
        await answer(http, lambda: None)
        entered.is_on = True
        await answer(http, lambda: setattr(entered, "is_on", False))
        records = (await http.get("/v1/dualpath/requests", headers=KEY)).json()["data"]
    assert sorted(record["num_hit_tokens"] > 0 for record in records) == [False, True]
    assert NAMED - entered.modules() == set()
    said = re.search(r"These are (\d+) modules; a profile enters about (\d+)", " ".join(SECTION.split()))
    assert said is not None
    assert int(said[1]) == len(NAMED)
    assert abs(int(said[2]) - len(entered.modules())) <= 10  # what engines do meanwhile differs from run to run
    print(len(entered.modules()))


async def test_garbage_collections_do_not_walk_what_a_server_has_loaded(
    tiny_model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    gc.unfreeze()
    try:
        async with server(tiny_model_dir("llama"), tmp_path / "kv"):
            assert gc.get_freeze_count() > 10 * len(gc.get_objects())
    finally:
        gc.unfreeze()
