"""``dualpath fabric check`` told nonsense: one line, exit code 2, nothing measured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dualpath.cli.main import main
from dualpath.testbed import Testbed, TestbedSpec
from dualpath.testbed.classes import class_commands

NODES = """
[[nodes]]
name = "pe0"
role = "prefill"
compute_nics = ["c0"]
compute_nic_mbps = 800
[[nodes]]
name = "de0"
role = "decode"
compute_nics = ["c0"]
compute_nic_mbps = 800
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "cluster.toml"
    path.write_text(NODES, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "--testbed or --config: give one of them"),
        (["--testbed", "--config", "FILE"], "--testbed or --config: give one of them"),
        (["--config", "FILE"], "--fabric: is required with --config"),
        (["--config", "FILE", "--fabric", "ethernet", "--rank", "0"], "--master: is required with --config"),
        (["--fabric", "ethernet", "--rank", "2", "--master", "a:1"], "--rank: must be 0 to 1, not 2"),
        (["--fabric", "ethernet", "--rank", "0", "--master", "a"], "--master: must be HOST:PORT, not 'a'"),
        (["--fabric", "ethernet", "--rank", "0", "--master", "a:1", "--world", "3"], "--world: must be 2 to 2"),
        (["--fabric", "ethernet", "--rank", "0", "--master", "a:1", "--contrast"], "--contrast: is for --testbed"),
        (["--fabric", "roce", "--rank", "0", "--master", "a:1"], "node pe0: rdma_devices: roce needs"),
        (["--fabric", "ethernet", "--rank", "0", "--master", "a:1", "--rounds", "0"], "--rounds: must be 1 to 1000"),
        (["--testbed", "--rank", "1"], "--rank: is for --config; a testbed knows it"),
    ],
)
def test_wrong_flags(flags: list[str], reason: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "--fabric" in flags and "--config" not in flags:
        flags = ["--config", "FILE", *flags]
    assert main(["fabric", "check", *(config if flag == "FILE" else flag for flag in flags)]) == 2
    assert reason in capsys.readouterr().err


def test_one_node_is_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.toml"
    path.write_text(NODES.replace('compute_nics = ["c0"]\ncompute_nic_mbps = 800\n', "", 1), encoding="utf-8")
    words = ["--config", str(path), "--fabric", "ethernet", "--rank", "0", "--master", "a:1"]
    assert main(["fabric", "check", *words]) == 2
    assert "1 nodes have compute_nics; a check needs two or more" in capsys.readouterr().err


def test_without_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["fabric", "check", "--testbed"]) == 2
    assert "needs root" in capsys.readouterr().err


def test_classes_are_switched_at_both_ends_of_every_compute_link() -> None:
    testbed = Testbed(TestbedSpec(nodes=("storage", "pe0", "de0"), storage_nic_mbps=200, compute_nic_mbps=800))
    off, on = (class_commands(testbed, on=on) for on in (False, True))
    ends = [("dualpath-pe0", "c0"), ("dualpath-switch", "c-pe0"), ("dualpath-de0", "c0"), ("dualpath-switch", "c-de0")]
    assert [(command[2], command[6]) for command in off] == ends
    tail = "parent 1: protocol ip prio 1 u32 match ip dst 10.3.0.0/24 flowid 1:20"
    assert [" ".join(command) for command in on if command not in off] == [
        f"tc -n {namespace} filter add dev {device} {tail}" for namespace, device in ends
    ]
