"""Two keys of a real server: neither learns from a hit what the other has sent, whatever salt it tries."""

from __future__ import annotations

from pathlib import Path

import httpx

from dualpath.bench.server import running_server, store_url
from dualpath.models.init import init_model

PROMPT = "The quick brown fox jumps over the lazy dog. " * 6
FLAGS = ("--block-tokens", "16", "--max-context-tokens", "1024", "--api-key", "alice", "--api-key", "bob")


async def cached(http: httpx.AsyncClient, key: str, salt: str = "") -> int:
    body = {"prompt": PROMPT, "max_tokens": 2, "temperature": 0, "cache_salt": salt}
    answer = await http.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


async def test_hits_are_a_keys_own(tmp_path: Path) -> None:
    model_dir = init_model("llama", tmp_path / "model", layers=2)
    flags = ["--model", str(model_dir), "--store", store_url(tmp_path / "kv"), *FLAGS]
    for start in range(2):  # a namespace is the same after a restart
        async with running_server(flags) as url, httpx.AsyncClient(base_url=url, timeout=60) as http:
            assert (await cached(http, "alice") > 0) is (start == 1)
            assert await cached(http, "alice") > 0
            for attempt in range(2):
                hits = await cached(http, "bob", salt=f"alice {start}")
                assert (hits > 0) is (attempt == 1)
    async with running_server([*flags, "--share-cache", "true"]) as url, httpx.AsyncClient(base_url=url) as http:
        assert await cached(http, "alice") == 0
        assert await cached(http, "bob") > 0
