"""``copies`` that this host cannot do are refused in one line, before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dualpath.cli.main import main
from dualpath.cluster import foundation
from dualpath.cluster.foundation import check_copies
from dualpath.cluster.places import Place
from dualpath.core.errors import ConfigError
from dualpath.core.ids import EngineId, NodeId
from dualpath.core.plan import Role


def place(device: str) -> Place:
    return Place(EngineId("prefill0"), NodeId("prefill-node0"), Role.PREFILL, device)


@pytest.mark.parametrize("made", [True, False], ids=["empty", "missing"])
def test_nic_without_an_rdma_device(
    made: bool,
    tiny_model_dir: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sysfs = tmp_path / "infiniband"
    if made:
        sysfs.mkdir()
    monkeypatch.setattr(foundation, "RDMA_DEVICES", sysfs)
    model = str(tiny_model_dir("llama"))
    flags = {"--model": model, "--store": "memory://", "--copies": "nic", "--device": "cpu", "--port": "0"}
    assert main(["serve", *(word for flag in flags.items() for word in flag)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("dualpath: error: [memory] copies: nic needs an RDMA device, and this host has none")
    assert captured.err.count("\n") == 1
    assert "loaded" not in captured.out


def test_nic_with_an_rdma_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr(foundation, "RDMA_DEVICES", tmp_path)
    check_copies("nic", [place("cpu"), place("cuda:0")])
    assert foundation.rdma_devices() == ["mlx5_0"]


@pytest.mark.parametrize(("kind", "device"), [("cuda", "cpu"), ("memcpy", "cuda:0")])
def test_copies_that_do_not_reach_the_device(kind: str, device: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[memory\] copies: {kind} .* prefill0 is on {device}"):
        check_copies(kind, [place(device)])


@pytest.mark.parametrize(("kind", "device"), [("cuda", "cuda:1"), ("memcpy", "cpu"), (None, "cpu"), (None, "cuda:0")])
def test_copies_that_do(kind: str | None, device: str) -> None:
    check_copies(kind, [place(device)])
