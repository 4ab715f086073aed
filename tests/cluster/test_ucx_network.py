"""Who can reach an engine's memory by UCX: nobody if all engines are in one process, unless the user says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualpath.cluster.ucx_network import open_devices_warning, within_host, within_process
from dualpath.config import ModelConfig, NodeConfig, RayConfig, ServeConfig, StoreConfig
from dualpath.ray.actors import node_environment

LOOPBACK = {"UCX_NET_DEVICES": "lo"}


def make_config(address: str | None = None) -> ServeConfig:
    return ServeConfig(
        model=ModelConfig(dir=Path("m")), store=StoreConfig(url="memory://"), ray=RayConfig(address=address)
    )


def test_one_process_needs_no_port_and_no_device() -> None:
    params = within_process({}, on_cuda=False)
    assert params["engine_config"] == "NET_DEVICES=lo,TLS=^tcp"
    assert within_host({}) == LOOPBACK


def test_cuda_keeps_what_it_may_need_on_loopback() -> None:
    assert within_process({}, on_cuda=True) == {"engine_config": "NET_DEVICES=lo"}


@pytest.mark.parametrize("transports", ["tcp", "self,sm,tcp", "^cma", "all"])
def test_transports_of_the_users_own_that_need_no_network_stay_on_loopback(transports: str) -> None:
    assert within_process({"UCX_TLS": transports}, on_cuda=False) == {"engine_config": "NET_DEVICES=lo"}
    assert within_host({"UCX_TLS": transports}) == LOOPBACK


@pytest.mark.parametrize("own", [{"UCX_NET_DEVICES": "mlx5_0:1"}, {"UCX_TLS": "rc,cuda"}, {"UCX_TLS": "ib"}])
def test_what_the_user_says_of_networks_is_left_alone(own: dict[str, str]) -> None:
    assert within_process(own, on_cuda=False) == {}
    assert within_host(own) == {}


def test_an_open_node_is_told_of_in_one_line_with_its_devices() -> None:
    warning = open_devices_warning({})
    assert warning is not None
    assert "\n" not in warning
    assert "lo" in warning
    assert "isolated network" in warning
    assert "compute_nics" in warning
    assert open_devices_warning({"UCX_NET_DEVICES": "all"}) == warning


def test_configured_devices_are_the_only_ones_and_nothing_to_warn_of() -> None:
    node = NodeConfig(name="a", role="decode", compute_nics=("c0",))
    assert node.environment["UCX_NET_DEVICES"] == "c0"
    assert open_devices_warning(node.environment) is None


def test_a_ray_on_this_machine_keeps_its_nodes_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UCX_NET_DEVICES", raising=False)
    monkeypatch.delenv("UCX_TLS", raising=False)
    node = NodeConfig(name="a", role="decode")
    assert node_environment(make_config(), node)["UCX_NET_DEVICES"] == "lo"
    with_nic = NodeConfig(name="a", role="decode", compute_nics=("c0",))
    assert node_environment(make_config(), with_nic)["UCX_NET_DEVICES"] == "c0"
    assert "UCX_NET_DEVICES" not in node_environment(make_config(address="10.1.0.1:6379"), node)
