"""``dualpath serve`` with pretended cluster, tokenizer and app: ``python -m tests.cli.fake_serve serve ...``.

Composition, HTTP server, signals and exit codes are the real ones; without torch a start takes a second. The
environment says how the cluster behaves: FAKE_START_S (how long a start takes), FAKE_START_ERROR (how it fails),
FAKE_ANSWER_S (how long an answer takes), FAKE_CLOSE_S (how long closing takes).
"""

from __future__ import annotations

import asyncio
import os
import sys
import types
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from dualpath.cli.main import main
from dualpath.config import ServeConfig
from dualpath.core.errors import ConfigError
from dualpath.gateway.settings import GatewaySettings


def _seconds(name: str) -> float:
    return float(os.environ.get(name, "0"))


class EmbeddedCluster:
    """The part of dualpath.cluster.embedded.EmbeddedCluster that ``serving.serve`` uses."""

    service = "the service"

    def __init__(self, config: ServeConfig, progress: Callable[[str], None]) -> None:
        self._progress = progress

    async def start(self) -> None:
        self._progress("starting")
        await asyncio.sleep(_seconds("FAKE_START_S"))
        if reason := os.environ.get("FAKE_START_ERROR"):
            raise ConfigError(reason)
        self._progress("prefill0 ready on cpu")

    async def close(self, drain_s: float) -> None:
        await asyncio.sleep(_seconds("FAKE_CLOSE_S"))
        print(f"closed with {drain_s:g} s to drain", flush=True)


class Tokenizer:
    @classmethod
    def load(cls, model_dir: Path) -> str:
        return f"tokenizer of {model_dir.name}"


def create_app(backend: Any, tokenizer: Any, settings: GatewaySettings, *_: object) -> FastAPI:
    app = FastAPI()

    @app.get("/given")
    async def given() -> list[Any]:
        return [backend, tokenizer, list(settings.api_keys)]

    @app.get("/answer")
    async def answer() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            yield "begin\n"
            await asyncio.sleep(_seconds("FAKE_ANSWER_S"))
            yield "end\n"

        return StreamingResponse(body())

    return app


def _pretend(name: str, content: Any) -> None:
    module = types.ModuleType(name)
    setattr(module, content.__name__, content)
    sys.modules[name] = module


if __name__ == "__main__":
    _pretend("dualpath.cluster.embedded", EmbeddedCluster)
    _pretend("dualpath.gateway.text.tokenizer", Tokenizer)
    _pretend("dualpath.gateway.app", create_app)
    sys.exit(main())
