"""Where a testbed's vLLM servers are, what they are told of their links, and when there is no room for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.vllm.fake_python import fake_python

from dualpath.cluster.vllm.plan import ServerPlace
from dualpath.config import ClusterConfig, ModelConfig, ServeConfig, StoreConfig
from dualpath.config.vllm import VllmConfig
from dualpath.core.errors import ConfigError
from dualpath.core.plan import Role
from dualpath.testbed import Testbed, TestbedSpec
from dualpath.testbed.rollout_servers import (
    SERVER_BYTES,
    available_bytes,
    require_room,
    server_places,
    started_servers,
)
from dualpath.vllm.settings import read_settings


def places() -> tuple[ServerPlace, ...]:
    spec = TestbedSpec(nodes=("storage", "pe0", "de0"), storage_nic_mbps=40, compute_nic_mbps=800, name="t")
    return server_places(Testbed(spec), {"pe0": "prefill", "de0": "decode"}, {"AWS_ACCESS_KEY_ID": "k"})


def test_each_server_is_on_its_host_and_listens_on_its_compute_nic() -> None:
    prefill, decode = places()
    assert (prefill.name, prefill.role, decode.name, decode.role) == ("pe0", Role.PREFILL, "de0", Role.DECODE)
    assert (prefill.url, prefill.line_host, prefill.line_port) == ("http://10.2.0.2:9000", "10.2.0.2", 9100)
    assert decode.host == "10.2.0.3"
    assert decode.on.command == ("ip", "netns", "exec", "t-de0")


def test_a_server_uses_its_hosts_nics_and_no_emulated_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = fake_python(tmp_path, monkeypatch)
    monkeypatch.setenv("UCX_NET_DEVICES", "eth0")
    monkeypatch.delenv("UCX_TLS", raising=False)
    config = ServeConfig(
        model=ModelConfig(dir=tmp_path),
        store=StoreConfig(url="s3://blocks/split"),
        cluster=ClusterConfig(engine="vllm", storage_nic_mbps=40.0),
        vllm=VllmConfig(python=python),
    )
    servers = started_servers(config, places(), print, tmp_path / "logs")
    process = servers.processes["de0"]
    environment, command = process._environment, process._command
    assert (environment["UCX_TLS"], environment["UCX_NET_DEVICES"]) == ("tcp", "kv0")
    assert environment["AWS_ACCESS_KEY_ID"] == "k"
    assert command[:5] == ["ip", "netns", "exec", "t-de0", str(python)]
    told = json.loads(command[command.index("--kv-transfer-config") + 1])
    assert read_settings(told["kv_connector_extra_config"]).nic_bytes_per_s is None
    assert process.log == tmp_path / "logs" / "de0.log"


def test_more_servers_than_the_machine_has_memory_for_are_refused() -> None:
    require_room(2, 2 * SERVER_BYTES)
    require_room(20, None)
    with pytest.raises(ConfigError, match=r"3 vLLM servers take 5.1 GB of memory .* 3.4 GB are free"):
        require_room(3, 2 * SERVER_BYTES)
    assert (available_bytes() or 1) > 0
