"""One trace from the client through gateway, scheduler and both engines, in a real OTLP receiver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from dualpath.cluster.otel import install_sink, remove_sink
from dualpath.config import ObserveConfig
from dualpath.core import tracing
from dualpath.core.errors import ConfigError
from dualpath.gateway.app import create_app
from dualpath.gateway.text.tokenizer import Tokenizer
from tests.e2e.cluster_kit import cluster, settings
from tests.e2e.otlp_receiver import Received, receiving

TRACE, CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY = {"prompt": "abcdefgh" * 20, "max_tokens": 4, "temperature": 0, "ignore_eos": True}


async def _ask(http: httpx.AsyncClient, prompt: str, flags: str | None) -> None:
    headers = {} if flags is None else {"traceparent": f"00-{TRACE}-{CLIENT}-{flags}"}
    answer = await http.post("/v1/completions", json=BODY | {"prompt": prompt}, headers=headers)
    assert answer.status_code == 200


async def _served(config_dir: Path, store: Path, observe: ObserveConfig, *flags: str | None) -> None:
    """The requests, each with the last one's prompt before its own, as an agent's turns have."""
    config = replace(settings(config_dir, f"file://{store}", decode=1), observe=observe)
    sink = install_sink(config.observe, "gateway")
    try:
        async with cluster(config) as embedded:
            app = create_app(embedded.service, Tokenizer.load(config_dir))
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gw") as http:
                for turn, flag in enumerate(flags):
                    await _ask(http, str(BODY["prompt"]) + "and more " * 5 * turn, flag)
    finally:
        await asyncio.to_thread(remove_sink, sink)


async def test_a_trace_joins_client_gateway_and_engines(tiny_model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    with receiving() as receiver:
        await _served(
            tiny_model_dir("llama"), tmp_path, ObserveConfig(otlp_traces_endpoint=receiver.endpoint), None, "01"
        )
    spans = [span for span in receiver.spans if span.trace_id == TRACE]
    by_name: dict[str, list[Received]] = {}
    for span in spans:
        by_name.setdefault(span.name, []).append(span)
    (server,), (request,) = by_name["text_completion llama"], by_name["llm_request"]
    assert server.parent_id == CLIENT
    assert request.parent_id == server.span_id
    assert all(span.parent_id == request.span_id for span in spans if span not in (server, request))
    assert {span.instance for span in spans} == {"gateway"}

    phases = {"queued", "placed", "reading", "ready", "prefilling", "handed_over", "decoding"}
    engines = {"reserve", "storage read", "forward", "kv push", "wait for device memory", "decode"}
    assert phases | engines <= set(by_name)
    assert server.attributes["http.response.status_code"] == 200
    assert request.attributes["gen_ai.usage.cache_read.input_tokens"] == 160
    assert request.attributes["gen_ai.usage.completion_tokens"] == 4
    assert request.attributes["gen_ai.latency.e2e"] >= request.attributes["gen_ai.latency.time_to_first_token"] > 0

    read_bytes = sum(span.attributes["dualpath.bytes"] for span in by_name["storage read"])
    sides = [request.attributes[f"dualpath.storage_read_bytes.{side}"] for side in ("prefill", "decode")]
    assert read_bytes == sum(sides) > 0
    assert {span.attributes["dualpath.role"] for span in spans if "dualpath.role" in span.attributes} == {
        "prefill",
        "decode",
    }
    for span in spans:
        assert server.start_unix_s - 0.05 <= span.start_unix_s <= span.end_unix_s


async def test_who_is_traced(tiny_model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """A client that says no is not; of those who say nothing a share is."""
    with receiving() as receiver:
        observe = ObserveConfig(otlp_traces_endpoint=receiver.endpoint, trace_fraction=0.0)
        await _served(tiny_model_dir("llama"), tmp_path, observe, "00", None)
    assert receiver.spans == []


async def test_a_collector_that_is_not_there_costs_no_answer(
    tiny_model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    observe = ObserveConfig(otlp_traces_endpoint="http://127.0.0.1:9/v1/traces")
    await _served(tiny_model_dir("llama"), tmp_path, observe, "01")
    assert tracing.sink() is None


def test_without_the_sdk_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualpath.cluster.otel._is_installed", lambda module: False)
    with pytest.raises(ConfigError, match=r"pip install 'dualpath\[otel\]'"):
        install_sink(ObserveConfig(otlp_traces_endpoint="http://c/v1/traces"), "gateway")
    assert install_sink(ObserveConfig(), "gateway") is None
