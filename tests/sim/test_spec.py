"""Specs as users write them: what is wrong is said in one line, with the exit code for wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dualpath.cli.main import main

GOOD = """
[cluster]
prefill_nodes = 1
decode_nodes = 2
engines_per_node = 2
prefill_kv_bytes = "10GB"
decode_kv_bytes = "60GB"
[model]
kv_bytes_per_token = 50000
num_layers = 60
prefill_base_s = 0.05
decode_base_s = 0.02
[workload]
trace = "synth:32K"
agents = 4
rounds = 3
[scheduler]
systems = "basic,shorter"
"""
ROLLOUT_KEYS = {"jct_s", "requests", "storage_read_bytes", "kv_transfer_bytes", "snic_max_avg", "ttft_s", "phases_s"}


def run(tmp_path: Path, text: str, *more: str) -> int:
    spec = tmp_path / "spec.toml"
    spec.write_text(text)
    return main(["sim", "run", "--spec", str(spec), *more])


def test_a_spec_becomes_the_json_of_a_rollout(tmp_path: Path) -> None:
    out, trace = tmp_path / "out.json", tmp_path / "trace.json"
    assert run(tmp_path, GOOD, "--json", str(out), "--chrome-trace", str(trace)) == 0
    report = json.loads(out.read_text())
    assert set(report["systems"]) == {"basic", "shorter"}
    assert all(set(one) >= ROLLOUT_KEYS for one in report["systems"].values())
    assert report["systems"]["basic"]["requests"] == 12
    assert report["limits"]["pooled_over_prefill"] == 3
    assert json.loads(trace.read_text())["traceEvents"]


def test_the_documented_spec_runs(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/planning.md").read_text()
    spec = text.partition("```toml\n")[2].partition("```")[0]
    assert "[failures]" in spec
    assert run(tmp_path, spec.replace("agents = 200", "agents = 20\nrounds = 5")) == 0


def test_arriving_agents_become_the_json_of_serving(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    online = GOOD.replace("agents = 4", "aps = 0.5\nwarm_up_s = 5\nduration_s = 20")
    assert run(tmp_path, online, "--json", str(out)) == 0
    point = json.loads(out.read_text())["systems"]["shorter"]["points"][0]
    assert point["aps"] == 0.5
    assert {"steady", "meets_slo", "without_first_token", "ttft_s", "tpot_s"} <= set(point)


def test_a_named_model_brings_its_costs_and_its_memory(tmp_path: Path) -> None:
    named = """
    [cluster]
    engines_per_node = 8
    [model]
    name = "Qwen2.5-32B"
    gpu = "H800"
    [workload]
    agents = 2
    rounds = 2
    """
    out = tmp_path / "out.json"
    assert run(tmp_path, named, "--json", str(out)) == 0
    report = json.loads(out.read_text())
    assert report["model_cost"]["kv_bytes_per_token"] == 262_144
    assert report["settings"]["cluster"]["decode_kv_bytes"] > 10**10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("decode_nodes = 2", "decode_nodes = 0"), "[cluster] decode_nodes: must be at least 1, not 0"),
        (("decode_nodes = 2", "decode_knots = 2"), "did you mean decode_nodes?"),
        (("agents = 4", 'agents = "many"'), "[workload] agents: must be a whole number"),
        (('"basic,shorter"', '"basic,best"'), "no system 'best'; choose from basic"),
        (('"basic,shorter"', '"basic,basic"'), "name every system once"),
        (('"60GB"', '"1MB"'), "[cluster] decode_kv_bytes: impossible cluster: the longest request has"),
        (('"10GB"', '"1MB"'), "[cluster] prefill_kv_bytes: impossible cluster"),
        (("prefill_base_s = 0.05", ""), "a forward and a decode step must take some time"),
        (("kv_bytes_per_token = 50000", ""), "[model] kv_bytes_per_token: is required"),
        (('decode_kv_bytes = "60GB"', ""), "[cluster] decode_kv_bytes: is required"),
        (("num_layers = 60", 'num_layers = 60\nname = "DeepSeek-V3"'), "kv_bytes_per_token: follows from name"),
        (("engines_per_node = 2", "engines_per_node = 2\ndecode_group_engines = 3"), "cannot be divided into groups"),
        (('"synth:32K"', '"synth:33K"'), "[workload] trace: no synthetic trace"),
        (('"synth:32K"', '"none.jsonl"'), "[workload] trace: none.jsonl: No such file"),
        (("prefill_base_s = 0.05", "prefill_base_s = 1e300"), "[model] prefill_base_s: must be at most 1e+06"),
        (("prefill_base_s = 0.05", "prefill_base_s = nan"), "[model] prefill_base_s: must be a finite number, not nan"),
        (("agents = 4", "agents = 4\nthink_s = 1e308"), "[workload] think_s: must be at most 1e+06"),
        (("[model]", "storage_nic_bytes_per_s = 1e-300\n[model]"), "storage_nic_bytes_per_s: must be at least 1"),
        (("[model]", "[output]\nwindow_s = 1e-9\n[model]"), "[output] window_s: must be at least 0.001"),
        (("[model]", '[failures]\nevents = ["inf prefill-node0"]\n[model]'), "times from 0 to 1e+06, not 'inf prefill"),
        (("[model]", '[failures]\nevents = ["1 prefill-node0 inf"]\n[model]'), "times from 0 to 1e+06"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], message: str
) -> None:
    assert change[0] in GOOD
    assert run(tmp_path, GOOD.replace(*change)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_model_that_does_not_fit_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, '[model]\nname = "DeepSeek-V3.2"\ngpu = "H800"') == 2
    assert "does not fit" in capsys.readouterr().err


def test_a_spec_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "run", "--spec", str(tmp_path / "none.toml")]) == 2
    assert "No such file" in capsys.readouterr().err
