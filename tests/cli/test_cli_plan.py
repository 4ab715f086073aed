"""``dualpath plan``: an answer from end to end on a small cluster, and one line for every wrong question."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dualpath.cli.main import main

SPEC = """
[cluster]
engines_per_node = 2
prefill_kv_bytes = 10000000000
decode_kv_bytes = 60000000000
[model]
kv_bytes_per_token = 50000
num_layers = 60
prefill_base_s = 0.05
prefill_token_s = 4e-5
prefill_group_token_s = 1e-4
decode_base_s = 0.02
decode_per_request_s = 1e-3
[workload]
trace = "synth:32K"
rounds = 6
"""


JOB = [*("--agents", "24", "--storage-nics", "1", "--systems", "split"), *("--workers", "1", "--seeds", "1")]
STATISTICS = ["--model", "DS-27B", "--gpu", "H800", "--aps", "1", "--append", "5", "--generate", "5"]


def test_a_cluster_is_recommended_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, out, page = tmp_path / "spec.toml", tmp_path / "plan.json", tmp_path / "plan.html"
    spec.write_text(SPEC)
    flags = ["--spec", str(spec), "--aps", "2", "--max-nodes", "6", "--storage-nics", "1", "--systems", "shorter"]
    flags += ["--price-per-gpu-hour", "2", "--workers", "1", "--seeds", "2", "--json", str(out), "--html", str(page)]
    assert main(["plan", *flags]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Recommended: ")
    report = json.loads(out.read_text())
    best = report["recommendation"]
    assert best["holds"]
    assert best["ttft_s"] <= 4
    assert best["tpot_s"] <= 0.05
    tokens_per_hour = best["tokens_per_s"] * 3600
    assert best["price_per_million_tokens"] == pytest.approx(best["price_per_hour"] / tokens_per_hour * 1e6)
    assert best["price_per_hour"] == 2 * best["candidate"]["num_gpus"]
    assert report["other_seeds"]["seeds"] == [1, 2]
    assert report["other_seeds"]["ttft_s"]["min"] <= report["other_seeds"]["ttft_s"]["max"] <= 4
    assert best["price_per_million_generated_tokens"] == pytest.approx(
        best["price_per_hour"] / 3600 / best["generated_per_s"] * 1e6
    )
    assert best["price_per_million_generated_tokens"] > best["price_per_million_tokens"]
    assert page.read_text().startswith("<!doctype html>")
    assert 'name="viewport"' in page.read_text()
    assert page.read_text().count("<tr>") == 1 + text.count("shorter  ")


def test_weights_that_change_ask_for_more(tmp_path: Path) -> None:
    spec, out = tmp_path / "spec.toml", tmp_path / "plan.json"
    spec.write_text(SPEC)
    jct_s = []
    for flags in ([], ["--update-every", "24"]):
        command = ["plan", "--spec", str(spec), "--max-nodes", "2", *JOB, *flags, "--json", str(out)]
        assert main(command) == 0
        jct_s.append(json.loads(out.read_text())["recommendation"]["jct_s"])
    assert jct_s[1] > 1.1 * jct_s[0]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--model"),
        (["--model", "DS-27B"], "--gpu"),
        (["--model", "DS-27B", "--gpu", "H800"], "--aps or --agents"),
        (["--model", "nothing", "--gpu", "H800", "--aps", "1"], "nothing"),
        (["--model", "DS-27B", "--gpu", "H800", "--aps", "1", "--staging", "many"], "--staging"),
        (["--model", "DS-27B", "--gpu", "H800", "--aps", "1", "--storage-nics", "1.5"], "--storage-nics"),
        (["--model", "DS-27B", "--gpu", "H800", "--aps", "1", "--systems", "oracle"], "oracle"),
        (["--model", "DS-27B", "--gpu", "H800", "--aps", "1", "--max-jct-s", "9"], "max_jct_s"),
        (
            ["--model", "DS-27B", "--gpu", "H800", "--aps", "1", "--workers", "100000"],
            "--workers: must be from 1 to 256",
        ),
        (["--model", "DS-27B", "--gpu", "H800", "--aps", "1", "--update-every", "9"], "--update-every: goes with"),
        (["--model", "DS-27B", "--gpu", "H800", "--agents", "0"], "agents: must be at least 1, not 0"),
        (["--model", "DS-27B", "--gpu", "H800", "--aps", "1", "--max-nodes", "1000000"], "max_nodes: must be from 2"),
        (["--model", "DS-27B", "--gpu", "H800", "--aps", "1", "--turns", "9"], "--append"),
        ([*STATISTICS, "--turns", "nan"], "--turns: must be a whole number, not 'nan'"),
        ([*STATISTICS, "--turns", "inf"], "--turns: must be a whole number, not 'inf'"),
        ([*STATISTICS, "--turns", "1000000000000"], "turns: must be from 1 to 100000, not 1e+12"),
        ([*STATISTICS, "--turns", "9", "--append", "1e30"], "append_tokens: must be from 1 to 1e+09, not 1e+30"),
        ([*STATISTICS, "--turns", "9", "--context", "inf"], "--context: must be a finite number, not inf"),
        ([*STATISTICS, "--turns", "9", "--context", "nan"], "--context: must be a finite number, not nan"),
        (["--model", "DeepSeek-V3", "--gpu", "H800", "--aps", "1", "--max-nodes", "2"], "impossible cluster"),
        (["--model", "DS-28B", "--gpu", "H800", "--aps", "1"], "error: model 'DS-28B': there is no file DS-28B"),
    ],
)
def test_a_wrong_question_is_one_line_and_exit_code_2(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
