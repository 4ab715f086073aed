"""The resolved configuration gives itself again, and no secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualpath.cli.main import main
from dualpath.config import ServeConfig, load_config
from dualpath.config.show import to_toml

TEXT = """\
[model]
dir = "/models/a \\"b\\""
[store]
url = "file:///kv"
capacity_bytes = "8GiB"
[gateway]
api_keys = ["very-secret"]
allowed_origins = ["https://a.example", "https://b.example"]
[cluster]
threads_per_engine = 3
[[nodes]]
name = "pe0"
role = "prefill"
pace_storage = true
storage_nic_mbps = 400
env = ["UCX_TLS=tcp", "AWS_SECRET_ACCESS_KEY=hidden"]
[[nodes]]
name = "de0"
role = "decode"
"""


def test_it_gives_itself_again(tmp_path: Path) -> None:
    file, again = tmp_path / "a.toml", tmp_path / "b.toml"
    file.write_text(TEXT.replace('api_keys = ["very-secret"]', "").replace(', "AWS_SECRET_ACCESS_KEY=hidden"', ""))
    flags = {("gateway", "port"): "9", ("scheduler", "queue_timeout_s"): "1.5"}
    config = load_config(ServeConfig, file, flags)
    again.write_text(to_toml(config, file, flags))
    assert load_config(ServeConfig, again) == config


@pytest.mark.parametrize("verb", ["serve", "up", "check"])
def test_a_dry_run_says_where_values_come_from(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.toml"
    file.write_text(TEXT)
    assert main([verb, "--config", str(file), "--dry-run", "--port", "9"]) == 0
    shown = capsys.readouterr().out
    assert "port = 9  # flag" in shown
    assert f"capacity_bytes = {8 * 1024**3}  # file" in shown
    assert 'host = "127.0.0.1"  # default' in shown
    assert "very-secret" not in shown
    assert "hidden" not in shown
    assert "# api_keys: 1, not shown  # file" in shown


def test_arguments_of_vllm_are_shown_but_for_keys(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    shown = ["--max-num-batched-tokens=2048", "--tokenizer-mode=slow", "--enforce-eager"]
    hidden = ["--api-key=very-secret", "--hf-token=very-secret"]
    file.write_text(TEXT + f"[vllm]\nargs = {[*hidden, *shown]}\n")
    text = to_toml(load_config(ServeConfig, file, {}), file, {})
    assert all(argument in text for argument in shown)
    assert "very-secret" not in text.replace('api_keys = ["very-secret"]', "")
