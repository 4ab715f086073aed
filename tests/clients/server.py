"""The gateway over the scripted model, on a port: ``python -m tests.clients.server [PORT]`` prints its URL."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.clients.model import ScriptedModel

from dualpath.gateway.app import create_app
from dualpath.gateway.http.server import serve
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.models.init import init_model


async def main(port: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer.load(init_model("qwen3", Path(folder) / "model"))
        app = create_app(ScriptedModel(model_name="scripted"), tokenizer)
        await serve(
            app,
            "127.0.0.1",
            port,
            drain_s=lambda: 1.0,
            on_listening=lambda host, taken: print(f"http://{host}:{taken}", flush=True),
        )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
