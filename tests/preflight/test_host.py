"""Memory and what may be locked of it, large pages."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import pytest

from dualpath.config import ClusterConfig, ModelConfig, NodeConfig, ServeConfig, StoreConfig
from dualpath.preflight.host import (
    available_bytes,
    check_files,
    check_locking,
    check_memory,
    check_pages,
    check_threads,
)

RDMA = NodeConfig(name="pe0", role="prefill", rdma_devices=("mlx5_0",))
TCP = NodeConfig(name="pe0", role="prefill", compute_nics=("c0",))


@pytest.mark.parametrize(("needed", "state"), [(10, "ok"), (95, "warn"), (101, "fail")])
def test_memory(needed: int, state: str) -> None:
    assert [line.state for line in check_memory(needed, 100)] == [state]


def test_what_linux_says_is_available(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  2048 kB\nMemAvailable:    1024 kB\nHugePages_Total:  0\n")
    assert available_bytes(tmp_path / "meminfo") == 1024**2
    assert available_bytes(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("node", "limit", "states"),
    [
        (RDMA, 10, ["fail"]),
        (RDMA, 100, ["ok"]),
        (RDMA, resource.RLIM_INFINITY, ["ok"]),
        (TCP, 10, []),
        (None, 10, []),
    ],
    ids=["too-little", "enough", "unlimited", "tcp", "one-process"],
)
def test_rdma_pins_staging(node: NodeConfig | None, limit: int, states: list[str]) -> None:
    assert [line.state for line in check_locking(node, 50, limit)] == states


@pytest.mark.parametrize(("text", "state"), [("always [madvise] never", "ok"), ("always madvise [never]", "warn")])
def test_large_pages(tmp_path: Path, text: str, state: str) -> None:
    (tmp_path / "enabled").write_text(text)
    assert [line.state for line in check_pages(RDMA, tmp_path / "enabled")] == [state]
    assert not list(check_pages(TCP, tmp_path / "enabled"))


def test_more_connections_than_files() -> None:
    assert [line.state for line in check_files(10**9)] == ["fail"]
    assert [line.state for line in check_files(None)] == ["ok"]


@pytest.mark.parametrize(
    ("threads", "device", "nodes", "remedies"),
    [
        (None, "cpu", (), []),
        (2, "cpu", (), []),
        (3, "cpu", (), ["threads_per_engine = 2"]),
        (9, "cuda", (), []),
        (2, "cpu", (TCP, replace(TCP, engines=2), replace(TCP, role="gateway")), ["threads_per_engine = 1"]),
        (2, "cpu", (TCP, replace(TCP, device="cuda:0")), []),
    ],
    ids=["default", "enough", "too-many", "on-a-gpu", "nodes", "one-on-a-gpu"],
)
def test_more_threads_than_cores(
    threads: int | None, device: str, nodes: tuple[NodeConfig, ...], remedies: list[str]
) -> None:
    cluster, model = ClusterConfig(threads_per_engine=threads), ModelConfig(dir=Path("m"), device=device)
    config = ServeConfig(cluster=cluster, model=model, store=StoreConfig(url="memory://threads"))
    assert [line.remedy for line in check_threads(config, nodes, num_cores=4)] == remedies
