"""Where gateways are put, and on which ports: hosts first, then those that follow."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from dualpath.cli.main import main
from dualpath.config import GatewayConfig, ModelConfig, NodeConfig, RayConfig, ServeConfig, StoreConfig
from dualpath.core.errors import ConfigError
from dualpath.ray.placing import RayHost, gateway_places, spread
from dualpath.ray.run_dir import RunDir, State
from dualpath.ray.runtime import check_resources, wanted_units
from dualpath.serving.serve import check_listening

NODES = (NodeConfig(name="pe0", role="prefill"), NodeConfig(name="de0", role="decode"))
GATEWAY = NodeConfig(name="gw", role="gateway", resource="front")


def settings(count: int, *nodes: NodeConfig, port: int = 8000) -> ServeConfig:
    return ServeConfig(
        model=ModelConfig(dir=Path()),
        store=StoreConfig(url="file:///kv"),
        gateway=GatewayConfig(port=port),
        ray=RayConfig(gateways=count),
        nodes=(*NODES, *nodes),
    )


@dataclass
class FakeRay:
    """``here`` is the second of its hosts."""

    hosts: list[dict[str, float]]  # resources of each
    alive: list[bool] = field(default_factory=list)

    def nodes(self) -> list[dict[str, Any]]:
        alive = self.alive or [True] * len(self.hosts)
        return [
            {"NodeID": f"id{i}", "NodeManagerAddress": f"10.0.0.{i}", "Alive": alive[i], "Resources": resources}
            for i, resources in enumerate(self.hosts)
        ]

    def get_runtime_context(self) -> FakeRay:
        return self

    def get_node_id(self) -> str:
        return "id1"

    def cluster_resources(self) -> dict[str, float]:
        return {"front": sum(host.get("front", 0) for host in self.hosts), "dualpath-prefill": 1, "dualpath-decode": 1}

    available_resources = cluster_resources


def places(ray: FakeRay, config: ServeConfig) -> list[tuple[str, int]]:
    return [(place.node_id, place.offset) for place in gateway_places(ray, config)]  # type: ignore[arg-type]


def test_one_on_each_host_first_this_one_before_others() -> None:
    three = FakeRay([{}, {}, {}])
    assert places(three, settings(1)) == [("id1", 0)]
    assert places(three, settings(2)) == [("id1", 0), ("id0", 0)]
    assert places(three, settings(5)) == [("id1", 0), ("id0", 0), ("id2", 0), ("id1", 1), ("id0", 1)]


def test_a_host_that_has_left_gets_none() -> None:
    assert places(FakeRay([{}, {}, {}], [True, True, False]), settings(3)) == [("id1", 0), ("id0", 0), ("id1", 1)]


def test_a_gateway_entry_says_which_hosts_and_how_many_on_each() -> None:
    ray = FakeRay([{"front": 1}, {}, {"front": 2}])
    assert places(ray, settings(3, GATEWAY)) == [("id0", 0), ("id2", 0), ("id2", 1)]
    assert wanted_units(settings(3, GATEWAY)) == {"dualpath-prefill": 1, "dualpath-decode": 1, "front": 3}
    with pytest.raises(ConfigError, match=r"gw: the Ray cluster offers 3 of resource front, 4 needed"):
        check_resources(ray, settings(4, GATEWAY))  # type: ignore[arg-type]


def test_whole_units_on_no_host_are_no_room() -> None:
    with pytest.raises(ConfigError, match=r"\[ray\] gateways: 2; hosts that may have them offer 1 places"):
        spread(2, [RayHost("a", "a", 1)])


@contextmanager
def listening(count: int) -> Iterator[int]:
    """On so many ports, the first of which is returned."""
    while True:
        with ExitStack() as taken:
            first = taken.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for number in range(1, count):
                    taken.enter_context(socket.create_server(("127.0.0.1", first + number)))
            except OSError:
                continue
            yield first
            return


def test_every_port_that_gateways_here_will_take_is_looked_at_before_anything_starts() -> None:
    with listening(1) as port:
        check_listening(settings(1, port=port - 1))
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            check_listening(settings(2, port=port - 1))
        elsewhere = replace(settings(2, port=port - 1), ray=RayConfig(gateways=2, address="10.0.0.1:6379"))
        check_listening(elsewhere)


@pytest.mark.parametrize("verb", ["kuberay", "kubernetes"])
def test_manifests_for_several_gateways_say_what_they_need(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.toml"
    nodes = "".join(f'[[nodes]]\nname = "{node.name}"\nrole = "{node.role}"\n' for node in NODES)
    file.write_text(f'[model]\ndir = "m"\n[store]\nurl = "file:///kv"\n[ray]\ngateways = 2\n{nodes}', encoding="utf-8")
    assert main([verb, "--config", str(file), "--image", "i", "--claim", "c"]) == 2
    assert "[ray] gateways: 2 on Kubernetes need pods of their own" in capsys.readouterr().err


def test_the_run_dir_names_all_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_dir = RunDir.of("test")
    run_dir.create()
    state = State("test", "a:1", "n", True, ("pe0", "de0"), ("gateway0", "gateway1"), ("http://a:1", "http://a:2"))
    run_dir.write(state)
    assert run_dir.read() == state
