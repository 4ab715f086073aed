"""``dualpath testbed`` where it cannot run, or is told nonsense: one line, exit code 2, nothing done."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dualpath.cli.main import main
from dualpath.testbed import system

VERBS = [["up"], ["status"], ["down"], ["run", "--", "true"]]


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: object, **_: object) -> None:
        raise AssertionError(f"ran {command}")

    monkeypatch.setattr(subprocess, "run", refuse)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_without_root(verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["testbed", *verb]) == 2
    assert capsys.readouterr().err == "dualpath: error: dualpath testbed needs root, to make network namespaces\n"


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_without_iproute2(verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["testbed", *verb]) == 2
    expected = "dualpath: error: dualpath testbed needs iproute2 (ip and tc): apt-get install -y iproute2\n"
    assert capsys.readouterr().err == expected


def test_without_the_kernels_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("dualpath.testbed.lifecycle.require_tools", lambda: None)
    monkeypatch.setattr(system, "_works", lambda script: "macvlan" not in script and "htb" not in script)
    assert main(["testbed", "up"]) == 2
    assert "needs a kernel with macvlan, htb, bfifo, u32, and this one is without" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["up", "--nodes", "pe0,pe0"], "--nodes: pe0 is listed twice"),
        (["up", "--nodes", "pe 0"], "--nodes: a host's name must be"),
        (["up", "--storage-nic-mbps", "-1"], "--storage-nic-mbps: must be 1 to 100000, not -1"),
        (["up", "--storage-nic-mbps", "fast"], "--storage-nic-mbps: must be a number, not 'fast'"),
        (["up", "--classes", "maybe"], "--classes: must be one of on, off, not 'maybe'"),
        (["up", "--name", "../x"], "--name: must be lower-case letters, digits and -, not '../x'"),
        (["status", "--name", "../x"], "--name: must be lower-case letters, digits and -, not '../x'"),
        (["down", "--name", "../x"], "--name: must be lower-case letters, digits and -, not '../x'"),
        (["run"], "the following arguments are required: COMMAND"),
    ],
    ids=str,
)
def test_bad_input(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["testbed", *arguments]) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"dualpath: error: {reason}")
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--classes", "maybe"], "--classes: must be one of on, off, not 'maybe'"),
        (["--name", "../x"], "--name: must be lower-case letters, digits and dashes, not '../x'"),
        (["--compute-nic-mbps", "0"], "--compute-nic-mbps: must be at least 1, not 0.0"),
        (["--storage-nic-mbps", "0.5"], "--storage-nic-mbps: must be 1 to 100000, not 0.5"),
        (["--store", "file:///x"], "--store: a testbed has a storage host of its own"),
        (["--systems", "none"], "--systems: no system 'none'"),
    ],
    ids=str,
)
def test_bad_rollout(flags: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["testbed", "rollout", "--model", str(tmp_path), "--trace", "synth:64K", *flags]) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"dualpath: error: {reason}")
    assert output.err.count("\n") == 1


def test_rollout_without_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["testbed", "rollout", "--model", str(tmp_path), "--trace", "synth:64K"]) == 2
    assert capsys.readouterr().err == "dualpath: error: dualpath testbed needs root, to make network namespaces\n"
