"""Comparisons on vLLM servers: fake ones here, real ones in tests/vllm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.scheduler.fixtures import BLOCK
from tests.vllm.fake_python import fake_python

from dualpath.bench.run_serving import _flags
from dualpath.bench.settings import ServingSettings, serve_config
from dualpath.cli.main import build_parser, main
from dualpath.config import ServeConfig, load_config
from dualpath.config.flags import given_flags

WORKLOAD = ["--trace", "synth:64K", "--scale", "0.002", "--agents", "2", "--rounds", "2", "--block-tokens", str(BLOCK)]


@pytest.mark.timeout(300)
def test_a_rollout_starts_servers_for_every_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python, out = fake_python(tmp_path, monkeypatch), tmp_path / "r.json"
    words = ["--engine", "vllm", "--vllm-python", str(python), "--vllm-logs", str(tmp_path / "logs")]
    words += ["--model", str(tmp_path), "--systems", "basic,split", "--json", str(out)]
    assert main(["bench", "rollout", *WORKLOAD, *words]) == 0
    report = json.loads(out.read_text())
    basic, split = report["systems"].values()
    assert basic["tokens_sha256"] == split["tokens_sha256"]
    assert set(basic["storage_read_bytes"]) == {"prefill-0", "decode-0"}
    assert report["settings"]["vllm"]["python"] == str(python)


def test_a_server_is_told_all_that_was_set(tmp_path: Path) -> None:
    """Through the command line: what begins with a dash, and what is given several times, too."""
    words = ["--engine", "vllm", "--vllm-arg=--enforce-eager", "--vllm-arg=--seed=3", "--front-door", "tokens"]
    words += ["--model", str(tmp_path), "--storage-nic-mbps", "40", "--aps", "1"]
    arguments = build_parser().parse_args(["bench", "serving", *WORKLOAD[:2], *words])
    settings = load_config(ServingSettings, None, given_flags(arguments, ServingSettings))
    config = serve_config(settings, "split", "file:///kv", 400)
    again = build_parser().parse_args(["serve", *_flags(config)])
    found = load_config(ServeConfig, None, given_flags(again, ServeConfig))
    assert found == replace(config, gateway=found.gateway)
    assert found.vllm.args == ("--enforce-eager", "--seed=3")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--vllm-join", "prefill=http://a:1", "--vllm-join", "decode=http://b:1"], "--vllm-join: every system"),
        (["--systems", "split,oracle"], "--systems: oracle moves no KV"),
        (["--update-every", "3"], "--update-every: vLLM servers change"),
        (["--front-door", "tokens"], "--front-door: a rollout asks for tokens"),
        (["--engines-per-node", "2"], "--engines-per-node: a vLLM server is a node"),
        (["--vllm-python", "/no/such/python"], "--vllm-python: /no/such/python cannot be run"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_asked_is_one_line(
    flags: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_python(tmp_path, monkeypatch)
    assert main(["bench", "rollout", *WORKLOAD, "--engine", "vllm", "--model", str(tmp_path), *flags]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"dualpath: error: {reason}")
    assert message.count("\n") == 1
