"""The app over a fake cluster: called in process, or over a real socket where connections matter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI
from tests.gateway.fakes import FakeBackend

from dualpath.gateway.app import create_app
from dualpath.gateway.http.server import serve
from dualpath.gateway.metrics import Metrics
from dualpath.gateway.page.minute_replay import Replay
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.models.init import init_model

Serving = Callable[..., AbstractAsyncContextManager[str]]
SETTINGS = GatewaySettings()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model("qwen3", tmp_path_factory.mktemp("gateway") / "model")


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path) -> Tokenizer:
    return Tokenizer.load(model_dir)


@pytest.fixture
async def backend() -> AsyncIterator[FakeBackend]:
    """No test may leave an iterator open."""
    fake = FakeBackend()
    yield fake
    assert not fake.open_iterators
    assert "running" not in fake.outcomes()


@pytest.fixture
async def http(backend: FakeBackend, tokenizer: Tokenizer) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(backend, tokenizer, GatewaySettings(max_body_bytes=1 << 20))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.fixture
def openai(http: httpx.AsyncClient) -> AsyncOpenAI:
    return AsyncOpenAI(api_key="-", base_url="http://gateway/v1", http_client=http, max_retries=0)


@pytest.fixture
def serving(tokenizer: Tokenizer) -> Serving:
    """A server on a free port for as long as the block lasts; gives its address."""

    @asynccontextmanager
    async def run(
        backend: FakeBackend,
        *,
        drain_s: float = 5.0,
        settings: GatewaySettings = SETTINGS,
        replay: Replay | None = None,
    ) -> AsyncIterator[str]:
        listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        stop, metrics = asyncio.Event(), Metrics()
        app = create_app(backend, tokenizer, settings, metrics, replay=replay)
        app.router.lifespan_context = _keep_tokenizer
        server = asyncio.create_task(
            serve(
                app,
                "127.0.0.1",
                0,
                drain_s=lambda: drain_s,
                stop=stop,
                handle_signals=False,
                on_listening=lambda _, port: listening.set_result(port),
                limits=settings.connections,
                refusals=metrics.refusals,
            )
        )
        try:
            yield f"http://127.0.0.1:{await listening}"
        finally:
            stop.set()
            await server

    return run


@asynccontextmanager
async def _keep_tokenizer(_: object) -> AsyncIterator[None]:
    """The tokenizer is shared by all tests; its threads must outlive one app."""
    yield
