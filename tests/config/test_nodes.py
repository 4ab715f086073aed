"""``[[nodes]]`` of a configuration: what a good one becomes, and what is said of a bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualpath.cli.main import main
from dualpath.config import NodeConfig, ServeConfig, load_config
from dualpath.core.errors import ConfigError

HEAD = '[model]\ndir = "m"\n[store]\nurl = "file:///kv"\n'
PREFILL = '[[nodes]]\nname = "pe0"\nrole = "prefill"\n'
DECODE = '[[nodes]]\nname = "de0"\nrole = "decode"\n'


def load(tmp_path: Path, text: str) -> ServeConfig:
    file = tmp_path / "cluster.toml"
    file.write_text(HEAD + text, encoding="utf-8")
    return load_config(ServeConfig, file)


def test_nodes_keep_their_order_and_settings(tmp_path: Path) -> None:
    config = load(tmp_path, PREFILL + "storage_nic_mbps = 200\npace_storage = true\n" + DECODE + 'env = ["A=b=c"]\n')
    first, second = config.nodes
    assert (first.name, first.role, first.storage_nic_mbps, first.pace_storage) == ("pe0", "prefill", 200.0, True)
    assert second.environment == {"A": "b=c"}
    assert (first.ray_resource, second.ray_resource) == ("dualpath-prefill", "dualpath-decode")


@pytest.mark.parametrize(
    ("own", "all_nodes", "emulated", "known"),
    [
        ("", "", None, None),
        ("", "storage_nic_mbps = 80\n", 10e6, 10e6),
        ("storage_nic_mbps = 160\n", "", None, 20e6),
        ("storage_nic_mbps = 160\n", "storage_nic_mbps = 80\n", 10e6, 10e6),
        ("storage_nic_mbps = 160\npace_storage = true\n", "storage_nic_mbps = 80\n", 20e6, 20e6),
    ],
)
def test_what_a_storage_nic_can_do_and_what_it_is_held_to(
    tmp_path: Path, own: str, all_nodes: str, emulated: float | None, known: float | None
) -> None:
    config = load(tmp_path, f"[cluster]\n{all_nodes}" + PREFILL + own + DECODE)
    rates = config.emulated_nic_bytes_per_s(config.nodes[0]), config.storage_nic_bytes_per_s(config.nodes[0])
    assert rates == (emulated, known)


def test_a_file_may_have_tables_of_other_verbs(tmp_path: Path) -> None:
    config = load(tmp_path, '[fabric]\nkv_network = "10.3.0.0/16"\n' + PREFILL + DECODE)
    assert len(config.nodes) == 2


def test_nics_and_classes_become_the_environment_of_ucx() -> None:
    node = NodeConfig(
        name="pe0",
        role="prefill",
        compute_nics=("c0", "c1"),
        rdma_devices=("mlx5_0", "mlx5_1:2"),
        gid_index=3,
        kv_service_level=2,
        kv_traffic_class=98,
        env=("UCX_IB_SL=5", "UCX_TLS=rc"),
    )
    assert node.environment == {
        "UCX_NET_DEVICES": "mlx5_0:1,mlx5_1:2",
        "UCX_IB_GID_INDEX": "3",
        "UCX_IB_SL": "5",
        "UCX_IB_TRAFFIC_CLASS": "98",
        "UCX_TLS": "rc",
    }
    assert NodeConfig(name="a", role="decode", compute_nics=("c0",)).environment == {"UCX_NET_DEVICES": "c0"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PREFILL, "there is no decode node"),
        (PREFILL + PREFILL + DECODE, "pe0 is there 2 times"),
        (PREFILL + DECODE + 'rol = "x"\n', r"\[\[nodes\]\] 2 rol: unknown key \(did you mean role\?\)"),
        (PREFILL + '[[nodes]]\nname = "de0"\n', r"\[\[nodes\]\] 2 role: is required"),
        (
            PREFILL + '[[nodes]]\nname = "de0"\nrole = "chef"\n',
            r"\[\[nodes\]\] 2 role: must be one of gateway, prefill",
        ),
        (PREFILL + DECODE + "engines = 0\n", r"\[\[nodes\]\] 2 engines: must be at least 1"),
        (PREFILL + DECODE + 'env = ["UCX"]\n', r"\[\[nodes\]\] 2 env: must be NAME=VALUE, not 'UCX'"),
        (PREFILL + DECODE + "pace_storage = true\n", "pace_storage: node de0 needs storage_nic_mbps"),
        (PREFILL + DECODE + "[cluster]\ndecode = 4\n", "leave them out"),
        (PREFILL + DECODE + "[ray]\nlease_s = 20\n", "lease_s: 20 s; needed is heartbeat_s < kill_silent_s < lease_s"),
        ("[ray]\ngateways = 2\n", r"\[ray\] gateways: 2 need \[\[nodes\]\]"),
        (PREFILL + DECODE + "[ray]\ngateways = 0\n", r"gateways: must be at least 1"),
        (PREFILL + DECODE + "[ray]\ngateways = 2\n[gateway]\nport = 0\n", "port: 0; 2 gateways on one host need"),
        (
            PREFILL + DECODE + "[ray]\ngateways = 2\n[gateway]\nport = 65535\n",
            "port: 65535; 2 gateways on one host need",
        ),
        ('[nodes]\nname = "pe0"\n', r"\[\[nodes\]\] must be a list of tables"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_up_needs_nodes_and_a_store_that_processes_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model_dir
) -> None:
    model = f'[model]\ndir = "{tiny_model_dir("llama")}"\n[store]\nurl = "memory://x"\n[gateway]\nport = 0\n'
    file = tmp_path / "cluster.toml"
    file.write_text(model, encoding="utf-8")
    assert main(["up", "--config", str(file)]) == 2
    assert "has no [[nodes]]" in capsys.readouterr().err
    file.write_text(model + PREFILL + DECODE, encoding="utf-8")
    assert main(["up", "--config", str(file)]) == 2
    assert "nodes need a store that all of them reach" in capsys.readouterr().err


def test_without_ray_one_line_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_model_dir
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ray" else real(name, *a))
    file = tmp_path / "cluster.toml"
    head = f'[model]\ndir = "{tiny_model_dir("llama")}"\n[store]\nurl = "{tmp_path}/kv"\n[gateway]\nport = 0\n'
    file.write_text(head + PREFILL + DECODE, encoding="utf-8")
    assert main(["up", "--config", str(file)]) == 2
    assert capsys.readouterr().err == (
        "dualpath: error: [[nodes]] need Ray, which is not installed: pip install 'dualpath[ray]'\n"
    )


def test_status_and_down_of_nothing_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("status", "down"):
        assert main([verb, "--cluster-name", "never-started"]) == 1
        assert "no system of the name never-started" in capsys.readouterr().err
