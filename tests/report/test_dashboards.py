"""Dashboards and alerts name series that there are, and Prometheus itself takes the files and fires when it must."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as parse

from dualpath.cli.main import main
from dualpath.core.ids import EngineId, NodeId
from dualpath.core.latency import Latencies
from dualpath.core.phase import Phase
from dualpath.core.plan import Role
from dualpath.core.stats import ClusterStats, EngineStats, NodeStats, StoreStats
from dualpath.gateway.metrics import Metrics
from dualpath.report.dashboards.alerts import ALERTS
from dualpath.report.dashboards.panels import PANELS
from dualpath.report.dashboards.write import DASHBOARD, PROMETHEUS, RULES

_NAME = re.compile(r"\b(?:dualpath_|vllm:)[a-z_]+")
_SELECTED = re.compile(r'(dualpath_[a-z_]+)\{([a-z]+)=~?"([^"]*)"\}')
EXPRESSIONS = {panel.title: query.expression for panel in PANELS for query in panel.queries} | {
    alert.name: alert.expression for alert in ALERTS
}


@pytest.fixture(scope="module")
def series() -> dict[str, set[tuple[str, str]]]:
    """Of a scrape of a cluster that has everything: names, and their labels with values."""
    latencies = Latencies()
    latencies.add(0.1)
    counted = latencies.snapshot()
    engines = tuple(
        EngineStats(
            EngineId(role.value),
            NodeId(role.value),
            role,
            storage_read_latency=counted,
            storage_write_latency=counted,
            prefill_stall_s=(0.1,),
        )
        for role in Role
    )
    nodes = tuple(
        NodeStats(NodeId(r.value), r, (), storage_nic_bytes_per_s=1.0, compute_nic_bytes_per_s=1.0) for r in Role
    )
    phases = {phase.value: 1 for phase in Phase}
    store = StoreStats(capacity_bytes=1, free_bytes=1)
    stats = ClusterStats(engines, nodes=nodes, store=store, requests_in_phase=phases, block_tokens=1, block_bytes=1)
    metrics = Metrics()
    for phase in phases:
        metrics._phase_s.labels(phase).observe(1.0)
    found: dict[str, set[tuple[str, str]]] = {}
    for family in parse(metrics.render(stats).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels.items())
    return found


@pytest.mark.parametrize("title", EXPRESSIONS)
def test_what_is_asked_for_is_there(title: str, series: dict[str, set[tuple[str, str]]]) -> None:
    names = _NAME.findall(EXPRESSIONS[title])
    assert names or "up{" in EXPRESSIONS[title] or "ALERTS" in EXPRESSIONS[title]
    assert [name for name in names if name not in series] == []
    for name, label, pattern in _SELECTED.findall(EXPRESSIONS[title]):
        values = [value for key, value in series[name] if key == label]
        for wanted in pattern.split("|"):
            assert wanted in values, (name, label)


@pytest.fixture
def files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["dashboards", "--out", str(tmp_path / "out"), "--target", "gw:8000"]) == 0
    assert len(capsys.readouterr().out.split()) == 3
    return tmp_path / "out"


def test_the_dashboard_is_one_that_grafana_reads(files: Path) -> None:
    board = json.loads((files / DASHBOARD).read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len(PANELS)
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}
    assert len(places) == len(panels)
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert all(target["expr"] and target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_every_alert_says_what_to_do(files: Path) -> None:
    rules = yaml.safe_load((files / RULES).read_text())["groups"][0]["rules"]
    assert len(rules) == len(ALERTS)
    assert all(rule["annotations"]["description"].startswith("What helps: ") for rule in rules)
    scrape = yaml.safe_load((files / PROMETHEUS).read_text())["scrape_configs"][0]
    assert scrape["static_configs"] == [{"targets": ["gw:8000"]}]


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["dashboards", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "--out" in capsys.readouterr().err


needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def _promtool(*arguments: str, at: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=at, capture_output=True, text=True, timeout=60)


@needs_promtool
def test_prometheus_takes_the_files(files: Path) -> None:
    done = _promtool("check", "config", PROMETHEUS, at=files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


_ENGINE = 'role="decode",node="n0",engine="d0"'
_HELD = {  # alert: series of ten minutes, and what its instance is labelled
    "DualPathNodeSilent": ({'dualpath_node_up{role="decode",node="n0"}': "0x20"}, {"role": "decode", "node": "n0"}),
    "DualPathStorageNicBinds": (
        {
            f"dualpath_nic_read_bytes_total{{{_ENGINE}}}": "0+5400x20",  # 90 a second
            'dualpath_storage_nic_capacity_bytes_per_second{role="decode",node="n0"}': "100x20",
        },
        {"node": "n0"},
    ),
    "DualPathDecodeMemoryBinds": (
        {
            f"dualpath_device_kv_used_bytes{{{_ENGINE}}}": "60x20",
            f"dualpath_device_kv_bytes{{{_ENGINE}}}": "100x20",
            'dualpath_requests_in_phase{phase="handed_over"}': "2x20",
        },
        {"role": "decode", "node": "n0", "engine": "d0"},
    ),
    "DualPathStagingBinds": (
        {
            f"dualpath_staging_slots{{{_ENGINE}}}": "100x20",
            f"dualpath_staging_slots_used{{{_ENGINE}}}": "60x20",
            f"dualpath_staging_slots_aside{{{_ENGINE}}}": "0x20",
            'dualpath_requests_in_phase{phase="placed"}': "2x20",
        },
        {"role": "decode", "node": "n0", "engine": "d0"},
    ),
    "DualPathStoreTakesNoWrites": ({"dualpath_store_accepts_writes": "0x20"}, {}),
    "DualPathRequestsFail": (
        {
            'dualpath_requests_total{outcome="failed"}': "0+2x20",
            'dualpath_requests_total{outcome="finished"}': "0+98x20",
        },
        {},
    ),
    "DualPathPrefillBinds": (
        {
            'dualpath_requests_in_phase{phase="ready"}': "1x20",
            'dualpath_requests_in_phase{phase="prefilling"}': "1x20",
            'dualpath_engine_requests{role="prefill",node="n1",engine="p0"}': "3x20",
        },
        {},
    ),
}
Quiet = Callable[[str], str]
_QUIETER: dict[str, Quiet] = {  # the same series where nothing is wrong
    "DualPathNodeSilent": lambda v: v.replace("0x20", "1x20"),
    "DualPathStorageNicBinds": lambda v: v.replace("5400", "4800"),  # 80 %
    "DualPathDecodeMemoryBinds": lambda v: v.replace("2x20", "0x20"),  # nobody waits
    "DualPathStagingBinds": lambda v: v.replace("2x20", "0x20"),
    "DualPathStoreTakesNoWrites": lambda v: v.replace("0x20", "1x20"),
    "DualPathRequestsFail": lambda v: v.replace("0+2x20", "0x20"),
    "DualPathPrefillBinds": lambda v: v.replace("1x20", "0x20"),
}


@needs_promtool
def test_alerts_fire_when_they_must_and_else_not(files: Path) -> None:
    tests = []
    for name, (given, labels) in _HELD.items():
        alert = next(alert for alert in ALERTS if alert.name == name)
        for is_held in (True, False):
            values = {key: value if is_held else _QUIETER[name](value) for key, value in given.items()}
            fired = [{"exp_labels": labels | {"severity": alert.severity}}] if is_held else []
            tests.append(
                {
                    "interval": "1m",
                    "input_series": [{"series": key, "values": value} for key, value in values.items()],
                    "promql_expr_test": [
                        {
                            "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})',
                            "eval_time": "15m",
                            "exp_samples": [{"labels": "{}", "value": 1}] if fired else [],
                        }
                    ],
                }
            )
    (files / "test.yaml").write_text(yaml.safe_dump({"rule_files": [RULES], "tests": tests}))
    done = _promtool("test", "rules", "test.yaml", at=files)
    assert done.returncode == 0, done.stdout + done.stderr
