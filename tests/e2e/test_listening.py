"""What a running server opens: its HTTP port, and beyond that nothing that another host could reach."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from dualpath.bench.server import running_server, store_url
from dualpath.models.init import init_model
from tests.listening import child_at, listening, open_to_others

pytestmark = pytest.mark.timeout(300)  # processes that import torch, on machines with other work


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model("llama", tmp_path_factory.mktemp("listening") / "tiny", layers=2)


def flags(model_dir: Path, store: Path, *more: str) -> list[str]:
    sizes = ("--block-tokens", "16", "--max-context-tokens", "1024")
    return ["--model", str(model_dir), "--store", store_url(store), "--prefill", "1", "--decode", "2", *sizes, *more]


async def complete(url: str) -> None:
    """Two turns: the second reads what the first has stored, and by then every connection that is made is there."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        for prompt in ("The quick brown fox. " * 10, "The quick brown fox. " * 12):
            answer = await client.post("/v1/completions", json={"model": "tiny", "prompt": prompt, "max_tokens": 20})
            assert answer.status_code == 200


def ports_of(url: str) -> tuple[int, set[int]]:
    """The HTTP port, and all others that the server's processes listen on."""
    port = urlsplit(url).port
    assert port is not None
    return port, {own for _, own in listening(child_at(port))} - {port}


async def test_a_server_opens_its_http_port_and_nothing_else(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UCX_TLS", "UCX_NET_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    async with running_server(flags(model_dir, tmp_path / "kv", "--path", "decode")) as url:
        await complete(url)
        _, others = ports_of(url)
        assert others == set()


async def test_with_tcp_between_its_engines_it_stays_on_loopback(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp")
    monkeypatch.delenv("UCX_NET_DEVICES", raising=False)
    async with running_server(flags(model_dir, tmp_path / "kv", "--path", "decode")) as url:
        await complete(url)
        port, others = ports_of(url)
        assert others, "UCX has no port: nothing was tested"
        assert open_to_others(child_at(port)) == set()


async def test_with_a_model_on_two_processes_it_stays_on_loopback(model_dir: Path, tmp_path: Path) -> None:
    async with running_server(flags(model_dir, tmp_path / "kv", "--tensor-parallel", "2")) as url:
        await complete(url)
        port, others = ports_of(url)
        assert others, "the processes have no port: nothing was tested"
        assert open_to_others(child_at(port)) == set()


def test_sockets_of_every_kind_are_seen() -> None:
    """Else the tests above could not fail."""
    with (
        socket.create_server(("0.0.0.0", 0)) as every,
        socket.create_server(("127.0.0.1", 0)) as own,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(("0.0.0.0", 0))
        seen = {port for _, port in open_to_others(os.getpid())}
        assert {every.getsockname()[1], datagrams.getsockname()[1]} <= seen
        assert own.getsockname()[1] not in seen
        assert own.getsockname()[1] in {port for _, port in listening(os.getpid())}
