"""All checks of a host over a real model and store, what hosts must agree on, and what stops a start."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dualpath.cli.main import main
from dualpath.config import MemoryConfig, ModelConfig, NodeConfig, ServeConfig, StoreConfig
from dualpath.core.errors import ConfigError
from dualpath.preflight import storage
from dualpath.preflight.line import Line, exit_code, fail, ok, warn
from dualpath.preflight.run import HostReport, check_host, conclude, quick
from dualpath.preflight.storage import check_rate, check_store
from dualpath.preflight.ucx import check_ucx


def _config(model: Path, store: Path, **others: object) -> ServeConfig:
    memory = MemoryConfig(max_context_tokens=256)
    return ServeConfig(model=ModelConfig(dir=model), store=StoreConfig(url=str(store)), memory=memory, **others)


def _states(lines: list[Line] | tuple[Line, ...], check: str) -> list[str]:
    return [line.state for line in lines if line.check == check]


def test_two_nodes_of_one_host(
    tiny_model_dir: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(
        f'[model]\ndir = "{tiny_model_dir("llama")}"\n[store]\nurl = "{tmp_path / "kv"}"\n'
        "[memory]\nmax_context_tokens = 256\n[gateway]\nport = 0\n"
        '[[nodes]]\nname = "pe0"\nrole = "prefill"\ncompute_nics = ["lo"]\n'
        '[[nodes]]\nname = "de0"\nrole = "decode"\ncompute_nics = ["nosuch0"]\n'
    )
    assert main(["check", "--config", str(file), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    found = {(line["check"], line["where"]): line for line in answer["lines"]}
    assert not answer["ok"]
    assert found["model", ""]["state"] == found["store", ""]["state"] == found["namespace", ""]["state"] == "ok"
    assert found["geometry", "pe0"]["text"] == found["geometry", "de0"]["text"]
    assert found["UCX", "pe0"]["state"] == "ok"  # NIXL was started on it
    assert found["UCX", "de0"]["state"] == found["compute NIC", "de0"]["state"] == "fail"
    assert "nosuch0" in found["UCX", "de0"]["text"]
    assert not list((tmp_path / "kv").iterdir())  # nothing is left of probes


def test_a_node_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--model", str(tmp_path), "--store", "memory://", "--node", "pe7"]) == 2
    assert "no node pe7" in capsys.readouterr().err


def test_a_context_that_does_not_fit_is_said(
    tiny_model_dir: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualpath.preflight.run.check_ucx", lambda environment: iter(()))
    config = _config(tiny_model_dir("llama"), tmp_path / "kv")
    config = dataclasses.replace(config, memory=MemoryConfig(max_context_tokens=10**6))
    report = check_host(config)
    assert _states(report.lines, "geometry") == ["fail"]
    assert not report.kinds


@pytest.mark.parametrize("roles", [("prefill", "gateway"), ("gateway", "prefill")])
def test_a_gateway_beside_a_node_does_not_hide_its_blocks(
    roles: tuple[str, ...], tiny_model_dir: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualpath.preflight.run.check_ucx", lambda environment: iter(()))
    monkeypatch.setattr("dualpath.preflight.storage._read_bytes_per_s", lambda path: 1.0)
    nodes = {role: NodeConfig(name=role, role=role, compute_nics=("lo",)) for role in ("prefill", "decode", "gateway")}
    config = _config(tiny_model_dir("llama"), tmp_path / "kv", nodes=tuple(nodes.values()))
    report = check_host(config, [nodes[role] for role in roles])
    assert _states(report.lines, "store rate") == ["fail"], "at a byte a second no block comes in time"


def _report(host: str, name: str, kind: str, **others: object) -> HostReport:
    return dataclasses.replace(HostReport(host, (), {name: kind}, 60, 100, time.time()), **others)


def test_nodes_of_different_models_cannot_serve_together() -> None:
    lines = conclude([_report("a", "pe0", "x"), _report("b", "de0", "y")], time.time())
    assert _states(lines, "namespace") == ["fail"]
    assert exit_code(lines) == 1


def test_nodes_of_one_host_share_its_memory() -> None:
    apart = conclude([_report("a", "pe0", "x"), _report("b", "de0", "x")], time.time())
    together = conclude([_report("a", "pe0", "x"), _report("a", "de0", "x")], time.time())
    assert (_states(apart, "memory"), _states(together, "memory")) == (["ok", "ok"], ["fail"])
    assert _states(apart, "namespace") == ["ok"]


def test_versions_and_clocks_of_hosts() -> None:
    reports = [_report("a", "pe0", "x"), _report("b", "de0", "x", version="0", unix_s=time.time() - 60)]
    lines = conclude(reports, time.time())
    assert _states(lines, "version") == ["fail"]
    assert _states(lines, "clock") == ["warn"]


def test_only_what_fails_makes_an_exit_code() -> None:
    assert exit_code([ok("a", ""), warn("b", "", "c")]) == 0
    assert exit_code([ok("a", ""), fail("b", "", "c")]) == 1


@pytest.mark.parametrize(
    ("rate", "nic", "block", "state"),
    [
        (1e9, 1.5e9, None, "ok"),
        (1e9, None, None, "ok"),
        (1e9, 3e9, None, "warn"),
        (1e6, None, 16_000_000, "fail"),  # 16 s of the 30 s that a read has
    ],
)
def test_a_store_beside_its_nic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, nic: float | None, block: int | None, state: str
) -> None:
    monkeypatch.setattr(storage, "_read_bytes_per_s", lambda directory: rate)
    assert [line.state for line in check_rate(_config(tmp_path, tmp_path), nic, block)] == [state]


def test_a_real_rate_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    (line,) = check_rate(_config(tmp_path, tmp_path), None, None)
    assert line.state == "ok"
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lines = list(check_store(_config(tmp_path, tmp_path / "file" / "kv")))
    assert _states(lines, "store") == ["fail"]


def test_more_capacity_than_there_is(tmp_path: Path) -> None:
    config = _config(tmp_path, tmp_path)
    config = dataclasses.replace(config, store=dataclasses.replace(config.store, capacity_bytes=10**18))
    assert _states(list(check_store(config)), "store room") == ["warn"]


def test_a_start_stops_at_missing_weights(tiny_model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_model_dir("llama").iterdir():
        (model / file.name).symlink_to(file)
    said: list[str] = []
    quick(_config(model, tmp_path / "kv"), said.append)
    assert not said
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="2 of 2 weight files are missing"):
        quick(_config(model, tmp_path / "kv"), said.append)


def test_a_start_only_warns_of_a_nic_that_is_not_there(tiny_model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    nodes = (
        NodeConfig(name="pe0", role="prefill", storage_nic="nosuch0"),
        NodeConfig(name="de0", role="decode"),
    )
    said: list[str] = []
    quick(_config(tiny_model_dir("llama"), tmp_path / "kv", nodes=nodes), said.append)
    assert len(said) == 1
    assert "pe0: nosuch0 is not there" in said[0]


def test_transports_that_are_not_there() -> None:
    (line,) = check_ucx({"UCX_TLS": "nosuch"})
    assert line.state == "fail"
