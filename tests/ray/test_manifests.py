"""Manifests by Kubernetes' own schemas, and by what they must have in common to find each other. None was applied."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from dualpath.cli.main import build_parser, main
from dualpath.config import ServeConfig, load_config

EXAMPLES = Path(__file__).parents[2] / "examples"
KUBERNETES = "1.31"
POD_MONITOR = {"selector", "podMetricsEndpoints"}  # of monitoring.coreos.com/v1, whose schema is not published as JSON
SERVER = '[model]\ndir = "/data/model"\ndevice = "cuda"\n[store]\nurl = "file:///data/kv"\n[cluster]\ndecode = 2\n'


def rendered(file: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> list[dict[str, Any]]:
    command = ["kubernetes", "--config", str(file), "--image", "registry.example/dualpath:1", "--claim", "data", *flags]
    assert main(command) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


GATEWAYS = '[[nodes]]\nname = "front"\nrole = "gateway"\nresource = "fronts"\n'
FILES = ["2p4d", "one-host", "server", "gateways"]


@pytest.fixture
def server(tmp_path: Path) -> Path:
    (tmp_path / "server.toml").write_text(SERVER)
    return tmp_path / "server.toml"


@pytest.fixture
def file(request: pytest.FixtureRequest, tmp_path: Path, server: Path) -> Path:
    """One of ``FILES``."""
    many = tmp_path / "gateways.toml"
    many.write_text((EXAMPLES / "2p4d.toml").read_text().replace("[ray]", "[ray]\ngateways = 3") + GATEWAYS)
    return {"server": server, "gateways": many}.get(request.param, EXAMPLES / f"{request.param}.toml")


def _of(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in found if one["kind"] == kind]


def _container(deployment: dict[str, Any]) -> dict[str, Any]:
    return _container_of(deployment["spec"]["template"])


def _container_of(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    return container


@pytest.mark.parametrize("file", FILES, indirect=True)
def test_they_are_as_kubernetes_wants_them(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rendered(file, capsys)
    for one in found:
        if one["kind"] != "PodMonitor":
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
    names = [(one["kind"], one["metadata"]["name"]) for one in found]
    assert len(set(names)) == len(names)
    (monitor,) = _of(found, "PodMonitor")
    assert (monitor["apiVersion"], set(monitor["spec"])) == ("monitoring.coreos.com/v1", POD_MONITOR)


def test_the_schemas_see_what_is_wrong(server: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (deployment,) = _of(rendered(server, capsys), "Deployment")
    _container(deployment)["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


@pytest.mark.parametrize("file", FILES, indirect=True)
def test_they_find_each_other(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rendered(file, capsys)
    pods = {one["metadata"]["name"]: one["spec"]["template"] for one in _of(found, "Deployment")}
    (monitor,), (secret,) = _of(found, "PodMonitor"), _of(found, "Secret")
    services = {one["metadata"]["name"]: one["spec"] for one in _of(found, "Service")}
    gateways = _selected(services["dualpath-gateway"]["selector"], pods)
    assert gateways == {name for name in pods if name.startswith("dualpath-gateway")}
    assert _selected(monitor["spec"]["selector"]["matchLabels"], pods) == gateways
    for name, service in services.items():
        selected = _selected(service["selector"], pods)
        assert len(selected) == (len(gateways) if name == "dualpath-gateway" else 1)
        for pod in selected:
            ports = {port["name"] for port in _container_of(pods[pod]).get("ports", [])}
            assert {port["targetPort"] for port in service.get("ports", [])} <= ports
    for deployment in _of(found, "Deployment"):
        assert _selected(deployment["spec"]["selector"]["matchLabels"], pods) == {deployment["metadata"]["name"]}
    for name in gateways:
        container = _container_of(pods[name])
        assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in {port["name"] for port in container["ports"]}
        assert container["readinessProbe"]["httpGet"]["path"] == "/health"
        # Where Ray starts the scheduler again by itself the gateways' streams go on meanwhile.
        assert container["livenessProbe"]["httpGet"]["path"] == ("/liveness" if len(gateways) == 1 else "/dualpath")
    for pod in pods.values():
        volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
        assert volumes["config"]["secret"]["secretName"] == secret["metadata"]["name"]
        assert {mount["name"] for mount in _container_of(pod)["volumeMounts"]} <= set(volumes)


def _selected(selector: dict[str, str], pods: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, pod in pods.items() if selector.items() <= pod["metadata"]["labels"].items()}


def test_a_server_scales_with_requests_that_wait(server: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rendered(server, capsys, "--min-pods", "2", "--max-pods", "5", "--queued-per-pod", "3")
    (deployment,), (scaler,) = _of(found, "Deployment"), _of(found, "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"], deployment["spec"]["replicas"]) == (2, 5, 2)
    (metric,) = scaler["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "dualpath_queued_requests"
    container = _container(deployment)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "3"
    build_parser().parse_args(container["command"][1:])


def test_nodes_are_on_a_plain_ray(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = rendered(EXAMPLES / "2p4d.toml", capsys)
    config = load_config(ServeConfig, EXAMPLES / "2p4d.toml")
    deployments = {one["metadata"]["name"]: one for one in _of(found, "Deployment")}
    assert {name: one["spec"]["replicas"] for name, one in deployments.items()} == {
        "dualpath-gateway": 1,
        "dualpath-pe0": 2,
        "dualpath-de0": 4,
    }
    assert not _of(found, "HorizontalPodAutoscaler")
    head = _container(deployments["dualpath-gateway"])["command"][2].splitlines()
    serve = shlex.split(head[-1])
    assert serve[:2] == ["exec", "dualpath"]
    build_parser().parse_args(serve[2:])
    for node in (config.nodes[0], config.nodes[2]):
        container = _container(deployments[f"dualpath-{node.name}"])
        command = container["command"][2]
        assert "--address=dualpath-head:6379" in command
        assert f"--resources='{{\"{node.ray_resource}\": 1}}'" in command
        assert node.environment.items() <= {e["name"]: e.get("value") for e in container["env"]}.items()
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"


@pytest.mark.parametrize("file", ["gateways"], indirect=True)
def test_each_of_several_gateways_has_a_pod(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rendered(file, capsys)
    deployments = {one["metadata"]["name"]: one for one in _of(found, "Deployment")}
    head, more = deployments["dualpath-gateway"], deployments["dualpath-gateways"]
    assert (head["spec"]["replicas"], more["spec"]["replicas"]) == (1, 2)
    for deployment in (head, more):
        assert "--resources='{\"fronts\": 1}'" in _container(deployment)["command"][2], "room for one"
    assert "ray start --address=dualpath-head:6379 --block" in _container(more)["command"][2]
    (gcs,) = (one["spec"] for one in _of(found, "Service") if one["metadata"]["name"] == "dualpath-head")
    assert gcs["publishNotReadyAddresses"] is True, "the head is not ready before those that join by it"


def test_keys_of_the_file_are_in_a_secret_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "server.toml"
    file.write_text(SERVER + '[gateway]\napi_keys = ["very-secret"]\n')
    found = rendered(file, capsys)
    assert [one["kind"] for one in found if "very-secret" in yaml.safe_dump(one)] == ["Secret"]
    again = tmp_path / "again.toml"
    again.write_text(found[0]["stringData"]["config.toml"])
    assert load_config(ServeConfig, again) == load_config(ServeConfig, file)


def test_more_at_least_than_at_most(server: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["kubernetes", "--config", str(server), "--image", "i", "--claim", "c", "--min-pods", "9"]
    assert main(command) == 2
    assert "--max-pods" in capsys.readouterr().err


def test_the_image_installs_what_there_is() -> None:
    root = EXAMPLES.parent
    text = (root / "deploy" / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        assert all((root / name).exists() for name in line.split()), line
    extras = (root / "pyproject.toml").read_text()
    for name in re.search(r'"\.\[([a-z,]+)\]"', text)[1].split(","):  # type: ignore[index]
        assert f"\n{name} = [" in extras
