"""A small comparison from the command line to JSON and report, and what the command line refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dualpath.bench import run_rollout as bench_rollout
from dualpath.bench.compare import differing_systems
from dualpath.bench.html import render
from dualpath.cli import main as cli
from dualpath.cli.main import main
from dualpath.report.headline import rollout_headline
from dualpath.report.picture import main as picture_file
from dualpath.report.svg import Mark, stacked_bars

SMALL = ["--prefill-staging-bytes", "32MiB", "--decode-staging-bytes", "32MiB", "--decode-kv-tokens", "8192"]
CLUSTER = ["--prefill", "1", "--decode", "2", "--block-tokens", "16", "--threads-per-engine", "1"]
SUMMARIES = ("ttft_s", "ttst_s", "tpot_s")


@pytest.fixture(scope="module")
def outcome(tiny_model_dir, tmp_path_factory):
    """(exit code, the JSON, the HTML) of basic and split on 3 agents, 4 turns each."""
    out = tmp_path_factory.mktemp("rollout")
    arguments = ["bench", "rollout", "--model", str(tiny_model_dir("llama")), "--trace", "synth:64K"]
    arguments += ["--scale", "0.01", "--agents", "3", "--rounds", "4", "--systems", "basic,split", "--seed", "3"]
    arguments += ["--storage-nic-mbps", "50", "--json", str(out / "r.json"), "--html", str(out / "r.html")]
    code = main([*arguments, *CLUSTER, *SMALL])
    return code, json.loads((out / "r.json").read_text()), (out / "r.html").read_text()


def test_the_json_has_its_shape(outcome):
    code, report, _ = outcome
    assert code == 0
    assert set(report) == {"settings", "systems", "limits"}
    assert set(report["limits"]) == {"pooled_over_prefill", "infinite_cache_hit_rate"}
    assert report["limits"]["pooled_over_prefill"] == 3.0
    assert list(report["systems"]) == ["basic", "split"]
    for one in report["systems"].values():
        assert one["requests"] == 12
        assert one["jct_s"] > 0
        assert set(one["storage_read_bytes"]) == {"prefill-node0", "decode-node0", "decode-node1"}
        assert set(one["kv_transfer_bytes"]) == {"decode_to_prefill", "prefill_to_decode"}
        for name in SUMMARIES:
            assert set(one[name]) == {"p50", "p90", "p99", "mean"}
        assert {"queued", "placed", "reading", "prefilling", "decoding"} <= set(one["phases_s"])
        assert set(one["phases_s"]["reading"]) == {"p50", "p99", "mean"}
        assert 1.0 <= one["snic_max_avg"] <= 3.0
        for node, windows in one["nic_series"].items():
            assert sum(windows) == pytest.approx(one["storage_read_bytes"][node], abs=len(windows))
        assert sum(one["path_shares"].values()) == pytest.approx(1.0)


def test_systems_do_the_same_work_and_generate_the_same_tokens(outcome):
    _, report, _ = outcome
    basic, split = report["systems"].values()
    for same in ("tokens_sha256", "prompt_tokens", "generated_tokens", "hit_tokens"):
        assert basic[same] == split[same]
    assert basic["hit_tokens"] > 0
    assert basic["hit_rate"] == pytest.approx(report["limits"]["infinite_cache_hit_rate"])
    assert basic["storage_read_bytes"]["decode-node0"] == basic["storage_read_bytes"]["decode-node1"] == 0
    assert sum(basic["storage_read_bytes"].values()) == sum(split["storage_read_bytes"].values())
    assert split["side_read_bytes"]["decode"] > 0


def test_agents_pause_as_long_as_their_tools_take_and_finished_systems_are_kept(tiny_model_dir, tmp_path, monkeypatch):
    pauses = [{"append_tokens": 20, "generate_tokens": 2, "think_s": think_s} for think_s in (9.0, 2.0, 4.0)]
    trace, out = tmp_path / "t.jsonl", tmp_path / "r.json"
    trace.write_text(json.dumps({"id": "a", "rounds": pauses}) + "\n")
    arguments = ["bench", "rollout", "--model", str(tiny_model_dir("llama")), "--trace", str(trace), "--agents", "1"]
    arguments += ["--think", "0.1", "--systems", "basic,split", "--json", str(out)]
    opened = []
    real = bench_rollout.ClusterOpener.open

    def first_only(self, system):
        opened.append(system)
        if len(opened) > 1:
            raise KeyboardInterrupt
        return real(self, system)

    monkeypatch.setattr(bench_rollout.ClusterOpener, "open", first_only)
    assert main([*arguments, *CLUSTER, *SMALL]) == 130
    assert opened == ["basic", "split"]
    systems = json.loads(out.read_text())["systems"]
    assert list(systems) == ["basic"]
    assert systems["basic"]["jct_s"] > 0.6, "0.2 s and 0.4 s before the second and the third turn"


def test_other_tokens_are_noticed_but_never_the_oracles():
    systems = {name: {"tokens_sha256": sha} for name, sha in (("basic", "a"), ("split", "b"), ("oracle", "c"))}
    assert differing_systems(systems) == ["split"]
    systems["split"]["tokens_sha256"] = "a"
    assert differing_systems(systems) == []
    assert differing_systems({"oracle": {"tokens_sha256": "c"}}) == []


def test_the_report_has_every_figure_and_no_link_to_the_outside(outcome):
    _, report, page = outcome
    assert not re.search(r"https?:|//[a-z]|src=|href=|@import|url\(", page)
    for heading in ("Job completion time", "storage NICs", "time to first token goes", "Which path", "Settings"):
        assert heading in page
    assert page.count("<svg") == 3 + len(report["systems"])
    assert "(P+D)/P = 3" in page
    assert "prefers-color-scheme:dark" in page
    assert "@media print" in page
    assert re.search(r"<h1>DualPath split finishes in [0-9.]+x of Basic&#39;s time", page)


def test_the_picture_is_an_svg_file_of_both_systems_nics(outcome, tmp_path: Path):
    _, report, _ = outcome
    (tmp_path / "result.json").write_text(json.dumps(report))
    picture_file(str(tmp_path / "result.json"), str(tmp_path / "out.svg"))
    root = ElementTree.parse(tmp_path / "out.svg").getroot()
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    basic_s, split_s = (report["systems"][name]["jct_s"] for name in ("basic", "split"))
    assert f"Basic: all agents done after {basic_s:.1f} s" in texts
    assert f"DualPath split: all agents done after {split_s:.1f} s, {basic_s / split_s:.2f} times as fast" in texts
    assert {"prefill-node0", "decode-node0", "decode-node1"} <= set(texts)
    num_lines = sum(1 for _ in root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert num_lines == 2 * 3


def test_a_machine_that_was_busy_is_noticed():
    """By the oracle, which cannot be slower than a system that reads."""
    report = {"limits": {"pooled_over_prefill": 3.0}}
    times = {"basic": {"jct_s": 20.0}, "split": {"jct_s": 30.0}}
    busy = rollout_headline({**report, "systems": {**times, "oracle": {"jct_s": 25.0}}})
    assert "without any I/O 1.25x. No I/O cannot take longer: other programs wanted the cores" in busy
    assert "other programs" not in rollout_headline({**report, "systems": {**times, "oracle": {"jct_s": 15.0}}})


def test_a_report_with_the_oracle_says_that_its_answers_mean_nothing(outcome):
    _, report, _ = outcome
    with_oracle = {**report, "systems": {**report["systems"], "oracle": report["systems"]["split"]}}
    page = render(with_oracle)
    assert "meaningless" in page
    assert "Oracle: no I/O at all" in page


def test_no_line_of_a_mark_crosses_another_s_text():
    chart = stacked_bars({"a": [9.0]}, ["JCT"], "s", [Mark(3.0, "right"), Mark(2.0, "left")])
    heights = {text: float(y) for y, text in re.findall(r'marktext" x="[0-9.]+" y="([0-9.]+)"[^>]*>(\w+)<', chart)}
    assert heights["left"] < heights["right"]


def test_a_serving_report_shows_latency_against_load():
    summary = {"p50": 0.5, "p90": 0.9, "p99": 1.0, "mean": 0.6}
    point = {"requests": 9, "steady": True, "meets_slo": True, "ttft_s": summary, "ttst_s": {}, "tpot_s": summary}
    point["phases_s"] = {"queued": {"mean": 0.1}, "reading": {"mean": 0.4}}
    point["ttft_over_time_s"] = [(5.0, 0.5), (15.0, 0.7), (25.0, 0.6)]
    points = [{**point, "aps": 0.2}, {**point, "aps": 0.4}]
    systems = {"basic": {"points": points, "capacity_aps": 0.2}, "split": {"points": points, "capacity_aps": 0.4}}
    page = render({"settings": {}, "slo": {"ttft_s": 4.0, "tpot_s": 0.05}, "systems": systems})
    assert "DualPath split serves 2.00x the agents of Basic" in page
    assert page.count("<svg") == 3
    assert page.count("<circle") == 4 + 4 * 3, "against load, and over time for each system and rate"
    assert "Time to first token over time" in page
    assert "Basic @ 0.2" in page


def test_agents_arrive_at_a_server_of_their_own(tiny_model_dir, tmp_path: Path):
    arguments = [
        "bench",
        "serving",
        "--model",
        str(tiny_model_dir("llama")),
        "--trace",
        "synth:32K",
        "--scale",
        "0.005",
    ]
    arguments += ["--rounds", "3", "--systems", "split", "--aps", "3", "--warm-up-s", "0.5", "--duration-s", "3"]
    arguments += ["--json", str(tmp_path / "s.json")]
    assert main([*arguments, *CLUSTER, *SMALL]) == 0
    report = json.loads((tmp_path / "s.json").read_text())
    [point] = report["systems"]["split"]["points"]
    assert point["requests"] > 0
    assert point["ttft_s"]["mean"] > 0
    assert {"queued", "placed", "reading", "ready", "prefilling"} <= set(point["phases_s"])
    assert report["slo"] == {"ttft_s": 4.0, "tpot_s": 0.05}


OK = ["--model", "/", "--trace", "synth:64K"]
BAD_INPUT = [
    (["rollout"], "--model is required"),
    (["rollout", "--model", "/"], "--trace is required"),
    (
        ["serving", *OK, "--aps", "1", "--agents", "3"],
        "unrecognized arguments: --agents 3",
    ),  # rate and time say how many
    (["rollout", *OK, "--agents", "0"], "--agents: must be at least 1, not 0"),
    (["rollout", *OK, "--agents", "10000000"], "--agents: must be at most 1e+06"),
    (["rollout", *OK, "--scale", "0"], "--scale: must be more than 0"),
    (["rollout", *OK, "--rounds", "-1"], "--rounds: must be at least 1"),
    (["rollout", *OK, "--seed", "-1"], "--seed: must be at least 0"),
    (["rollout", *OK, "--systems", "basic,fast"], "--systems: no system 'fast'"),
    (["rollout", *OK, "--systems", "basic,basic"], "--systems: name every system once"),
    (["rollout", *OK, "--storage-nic-mbps", "0"], "--storage-nic-mbps: must be more than 0"),
    (["rollout", *OK, "--path", "split"], "--path: a benchmark compares whole systems"),
    (["rollout", *OK, "--json", "/no/such/dir/x"], "--json: cannot write to /no/such/dir/x"),
    (["rollout", "--model", "/no/such", "--trace", "synth:64K"], "no such model directory: /no/such"),
    (["serving", *OK], "give either --aps or --find-capacity"),
    (["serving", *OK, "--aps", "1", "--find-capacity"], "give either --aps or --find-capacity"),
    (["serving", *OK, "--aps", "0"], "--aps: rates must be more than 0"),
    (["serving", *OK, "--aps", "fast"], "--aps: must be numbers"),
    (["serving", *OK, "--aps", "1e9"], "--aps: rates must be more than 0 and at most 1e6"),
    (["serving", *OK, "--find-capacity", "--min-aps", "5", "--max-aps", "1"], "--min-aps 5 is more than"),
    (["serving", *OK, "--aps", "1", "--ttft-slo-s", "0"], "--ttft-slo-s: must be more than 0"),
]


@pytest.mark.parametrize(("arguments", "reason"), BAD_INPUT, ids=lambda value: str(value)[-60:])
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, reason, capsys):
    assert main(["bench", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"dualpath: error: {reason}")
    assert message.count("\n") == 1


@pytest.mark.parametrize("action", ["rollout", "serving"])
def test_help_fits_a_page_and_names_every_system(action, capsys):
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args(["bench", action, "--help"])
    text = capsys.readouterr().out
    for word in ("--systems", "oracle", "--storage-nic-mbps", "--json", "--html"):
        assert word in text
    for refused in ("--path ", "--system {", "--allow-invalid-answers"):
        assert refused not in text


def test_a_trace_that_is_not_there_is_one_line(tiny_model_dir, tmp_path: Path, capsys):
    arguments = ["bench", "rollout", "--model", str(tiny_model_dir("llama")), "--trace", str(tmp_path / "no.jsonl")]
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_weights_change_in_the_middle(tiny_model_dir, tmp_path):
    arguments = ["bench", "rollout", "--model", str(tiny_model_dir("llama")), "--trace", "synth:64K"]
    arguments += ["--scale", "0.01", "--agents", "2", "--rounds", "3", "--systems", "split", "--update-every", "3"]
    assert main([*arguments, "--json", str(tmp_path / "r.json"), *CLUSTER, *SMALL]) == 0
    systems = json.loads((tmp_path / "r.json").read_text())["systems"]
    assert list(systems) == ["split", "split, update", "split, wipe"]
    plain, update, wipe = systems.values()
    assert plain["generated_tokens"] == update["generated_tokens"] == wipe["generated_tokens"]
    assert max(update["hit_tokens"], wipe["hit_tokens"]) <= plain["hit_tokens"]
