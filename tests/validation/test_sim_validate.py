"""``dualpath sim validate`` on a tiny model: both sides move the same bytes; what cannot be compared is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dualpath.cli.main import main
from dualpath.sim.spec import load_spec

WORK = [
    "--trace",
    "synth:64K",
    "--scale",
    "0.01",
    "--agents",
    "3",
    "--rounds",
    "4",
    "--seed",
    "3",
    "--block-tokens",
    "16",
]
SMALL = ["--prefill-staging-bytes", "32MiB", "--decode-staging-bytes", "32MiB", "--decode-kv-tokens", "8192"]


def test_bytes_are_the_same_and_the_spec_can_be_simulated_alone(
    tiny_model_dir: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, profile, out, toml = (
        str(tiny_model_dir("llama")),
        tmp_path / "p.json",
        tmp_path / "v.json",
        tmp_path / "s.toml",
    )
    assert main(["model", "profile", "--model", model, "--threads", "1", "--budget-s", "1", "--out", str(profile)]) == 0
    flags = ["--model", model, "--profile", str(profile), "--threads-per-engine", "1", "--storage-nic-mbps", "20"]
    flags += ["--systems", "basic", "--shapes", "1P1D", "--json", str(out), "--write-spec", str(toml)]
    code = main(["sim", "validate", *flags, *WORK, *SMALL])
    report = json.loads(out.read_text())
    assert code == (0 if report["holds"] else 1)
    shape = report["shapes"]["1P1D"]
    assert set(shape["overhead"]) == {"admission_s", "handover_s"}
    rows = {row["what"]: row for row in shape["systems"]["basic"]["rows"]}
    assert list(rows) == [
        *("JCT", "TTFT mean", "TTFT p50", "TTFT p99", "prefill-node0 read", "all NICs read"),
        *("decode-node0 written", "all NICs written"),
    ]
    for what in ("prefill-node0 read", "decode-node0 written"):
        assert rows[what]["real"] == rows[what]["simulated"] > 0
    real, simulated = shape["systems"]["basic"]["real"][0], shape["systems"]["basic"]["simulated"][0]
    for same in ("requests", "prompt_tokens", "hit_tokens", "generated_tokens", "storage_read_bytes", "path_shares"):
        assert real[same] == simulated[same], same
    assert "1P1D basic" in capsys.readouterr().out

    assert load_spec(toml).cluster.block_header_bytes == 4096
    assert main(["sim", "run", "--spec", str(toml), "--json", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["systems"]["basic"]["jct_s"] == simulated["jct_s"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--storage-nic-mbps: is required"),
        (["--storage-nic-mbps", "20", "--shapes", "1P1D,P2"], "--shapes: 'P2' is no shape like 1P2D"),
        (["--storage-nic-mbps", "20", "--shapes", "1P1D,1P1D"], "--shapes: name every shape once"),
        (["--storage-nic-mbps", "20", "--systems", "oracle"], "--systems: oracle moves nothing"),
        (["--storage-nic-mbps", "20", "--write-spec", "x.toml"], "--write-spec: a spec describes one cluster"),
        (["--storage-nic-mbps", "20", "--prefill", "2"], "--prefill: several clusters are compared; see --shapes"),
        (["--storage-nic-mbps", "20", "--system", "split"], "--system: several clusters are compared; see --systems"),
    ],
)
def test_what_cannot_be_compared(
    flags: list[str], message: str, tiny_model_dir: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", "validate", "--model", str(tiny_model_dir("llama")), *WORK, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"dualpath: error: {message}")
    assert error.count("\n") == 1
