"""NICs by what Linux lists: there, up, at the stated rate, with an address."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualpath.config import NodeConfig
from dualpath.preflight.line import Line
from dualpath.preflight.network import check_nics


@pytest.fixture
def sys_class(tmp_path: Path) -> Path:
    files = {
        "net/ens1/operstate": "up",
        "net/ens1/speed": "400000",
        "net/slow/operstate": "up",
        "net/slow/speed": "100000",
        "net/off/operstate": "down",
        "net/off/speed": "-1",
        "net/veth/operstate": "up",
        "net/veth/speed": "-1",
        "infiniband/mlx5_0/ports/1/state": "4: ACTIVE",
        "infiniband/mlx5_0/ports/1/rate": "400 Gb/sec (4X NDR)",
        "infiniband/mlx5_0/ports/1/gids/3": "fe80:0000:0000:0000:0000:0000:0000:0001",
        "infiniband/mlx5_0/ports/1/gids/0": "0000:0000:0000:0000:0000:0000:0000:0000",
        "infiniband/mlx5_1/ports/1/state": "1: DOWN",
        "infiniband/mlx5_1/ports/1/rate": "40 Gb/sec (4X QDR)",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    return tmp_path


def _lines(sys_class: Path, **fields: object) -> list[Line]:
    return list(check_nics(NodeConfig(name="pe0", role="prefill", **fields), sys_class))


@pytest.mark.parametrize(
    ("nic", "state", "text"),
    [
        ("ens1", "ok", "up at 400,000"),
        ("slow", "fail", "runs at 100,000 Mbit/s, 400,000 are stated"),
        ("off", "fail", "off is down"),
        ("veth", "warn", "does not say its rate"),
        ("nic9", "fail", "nic9 is not there"),
        ("mlx5_0", "ok", "up at 400,000"),
        ("mlx5_1:1", "fail", "is down"),
        ("mlx5_0:2", "fail", "without a port 2"),
    ],
)
def test_a_storage_nic(sys_class: Path, nic: str, state: str, text: str) -> None:
    (line,) = _lines(sys_class, storage_nic=nic, storage_nic_mbps=400_000.0)
    assert line.state == state
    assert text in line.text
    assert bool(line.remedy) == (state != "ok")


def test_what_is_not_there_is_answered_with_what_is(sys_class: Path) -> None:
    (line,) = _lines(sys_class, storage_nic="nic9")
    assert line.remedy == "this host has ens1, mlx5_0, mlx5_1, off, slow, veth"


def test_an_emulated_rate_says_nothing_about_the_device(sys_class: Path) -> None:
    (line,) = _lines(sys_class, storage_nic="slow", storage_nic_mbps=400_000.0, pace_storage=True)
    assert line.state == "ok"


def test_a_nic_much_faster_than_stated_is_doubtful(sys_class: Path) -> None:
    (line,) = _lines(sys_class, compute_nics=("ens1",), compute_nic_mbps=100_000.0)
    assert line.state == "warn"
    assert "compute_nic_mbps" in line.remedy


@pytest.mark.parametrize(("index", "states"), [(3, ["ok"]), (0, ["ok", "fail"]), (7, ["ok", "fail"])])
def test_the_gid_of_a_roce_device(sys_class: Path, index: int, states: list[str]) -> None:
    assert [line.state for line in _lines(sys_class, rdma_devices=("mlx5_0",), gid_index=index)] == states
