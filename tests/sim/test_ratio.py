"""Table 1 of the paper, and the command that prints it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dualpath.cli.main import main
from dualpath.sim.catalogue.convention import PHYSICAL, TABLE_1, all_conventions
from dualpath.sim.catalogue.find import find_model
from dualpath.sim.catalogue.models import MODELS
from dualpath.sim.ratio import TABLE_1_APPEND, TABLE_1_CONTEXTS, TABLE_1_RATIOS, cache_compute_ratio, ratio_row

WITHIN = {
    "Qwen2.5-32B": 0.02,
    "GPT-OSS-120B": 0.02,
    "Qwen3-235B-A22B": 0.02,
    "DeepSeek-V3.2": 0.08,
    "DeepSeek-V3": 0.08,
}


@pytest.mark.parametrize("name", TABLE_1_RATIOS)
def test_table_1_is_met_at_both_ends(name: str) -> None:
    row = ratio_row(find_model(name), None, TABLE_1_CONTEXTS, TABLE_1_APPEND, TABLE_1)
    for point, paper in zip(row.points, TABLE_1_RATIOS[name], strict=True):
        assert point.paper == paper
        assert point.rel_error is not None
        assert abs(point.rel_error) <= WITHIN[name]


def test_the_ratio_at_the_mean_context_of_the_trace() -> None:
    """About 22 for DeepSeek-V3.2 at 32.7K (paper, section 3)."""
    ratio = cache_compute_ratio(find_model("DeepSeek-V3.2").shape, "fp8", 32721, 429, TABLE_1)
    assert ratio == pytest.approx(22, rel=0.03)


def test_a_ratio_by_hand() -> None:
    """Qwen3-235B: 94 layers of 1 KB a token; 21.57B weights, 64 heads of 128."""
    model = find_model("Qwen3-235B-A22B").shape
    params = 94 * (4096 * 128 * (64 + 4) * 2 + 8 * 3 * 4096 * 1536 + 4096 * 128) + 151936 * 4096
    flops = 429 * (2 * params + 94 * 4 * 64 * 128 * (16384 + 214.5))
    expected = 94 * 1024 * 16384 / flops * 1e6
    assert cache_compute_ratio(model, "fp8", 16384, 429, TABLE_1) == pytest.approx(expected)


def test_no_dense_model_depends_on_the_conventions_of_sparse_ones() -> None:
    model = find_model("Llama-3.3-70B").shape
    ratios = {cache_compute_ratio(model, "bf16", 16384, 429, one) for one in all_conventions()}
    assert len(ratios) == 2  # with and without the logits of every token


def test_the_range_spans_the_stated_conventions() -> None:
    for name in MODELS:
        found = find_model(name)
        for convention in (TABLE_1, PHYSICAL):
            for point in ratio_row(found, None, [20_000], 429, convention).points:
                assert point.lowest <= point.gb_per_pflop <= point.highest


def test_only_what_the_paper_measured_is_compared_with_it() -> None:
    found = find_model("Qwen2.5-32B")
    for dtype, context, append in (("fp8", 16384, 429), (None, 20000, 429), (None, 16384, 430)):
        (point,) = ratio_row(found, dtype, [context], append, TABLE_1).points
        assert point.paper is None
        assert point.rel_error is None


def test_the_table_has_a_line_for_each_model_and_says_what_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "ratio"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[1 : 2 + len(TABLE_1_RATIOS)]
    assert [line.split()[0] for line in table[1:]] == list(TABLE_1_RATIOS)
    assert len({len(line) for line in table}) == 1  # aligned
    notes = " ".join(lines[2 + len(TABLE_1_RATIOS) :])
    assert "indexer keys not counted" in notes
    assert "do not determine it" in notes


def test_json_on_stdout_is_nothing_but_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "ratio", "--model", "DeepSeek-V3.2", "--context", "32721", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["convention"]["name"] == "table1"
    assert report["convention"]["index_keys"] is False
    (row,) = report["rows"]
    (point,) = row["points"]
    assert (row["kv_bytes_per_token"], point["context_tokens"]) == (40016, 32721)
    assert point["gb_per_pflop"] == pytest.approx(point["kv_bytes"] / 1e9 / (point["flops"]["total"] / 1e15))
    assert point["paper_gb_per_pflop"] is None


def test_a_config_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODELS["Qwen2.5-32B"].config), encoding="utf-8")
    out = tmp_path / "out.json"
    command = ["sim", "ratio", "--model", str(tmp_path), "Qwen2.5-32B", "--context", "1M", "--kv-dtype", "fp8"]
    assert main([*command, "--convention", "physical", "--json", str(out)]) == 0
    assert "1M" in capsys.readouterr().out
    mine, theirs = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert mine["points"] == theirs["points"]
    assert mine["kv_bytes_per_token"] == 64 * 2 * 8 * 128


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no-such"], "model 'no-such': there is no file no-such"),
        (["--context", "16X"], "--context: must be a number of tokens such as 16384, 16K or 1M, not '16X'"),
        (["--context", ""], "--context: must be"),
        (["--append", "0"], "--append: must be"),
        (["--kv-dtype", "int3"], "kv_dtype must be one of bf16, fp16, fp8, not 'int3'"),
        (["--convention", "mine"], "--convention must be one of table1, physical, not 'mine'"),
        (["--json", "/no/such/dir/x.json"], "--json: /no/such/dir is not a directory"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "ratio", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
