"""Examples are what they say: configurations load, and the manifest is the configuration's, by the resource's schema.

The manifest has not been applied to a cluster; what is checked are the fields that ray.io/v1 documents.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from dualpath.cli.main import main
from dualpath.config import NodeConfig, ServeConfig, load_config
from dualpath.core.errors import ConfigError
from dualpath.ray.actors import gpus_of
from dualpath.ray.kuberay import PodOptions, ray_cluster, render_kuberay

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIONS = PodOptions("registry.example/dualpath:latest", "dualpath-data")

GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def config_of(name: str) -> ServeConfig:
    return load_config(ServeConfig, EXAMPLES / name)


def test_examples_describe_what_their_names_say() -> None:
    one, many = config_of("one-host.toml"), config_of("2p4d.toml")
    assert [node.role for node in one.nodes] == ["prefill", "decode"]
    assert [node.role for node in many.nodes].count("prefill") == 2
    assert [node.role for node in many.nodes].count("decode") == 4
    assert all(node.engines == len(node.compute_nics) == len(node.rdma_devices) == 8 for node in many.nodes)


def test_the_example_manifest_is_the_rendered_one(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--image", OPTIONS.image, "--claim", OPTIONS.claim]
    assert main(["kuberay", "--config", str(EXAMPLES / "2p4d.toml"), *flags]) == 0
    assert capsys.readouterr().out == (EXAMPLES / "kuberay.yaml").read_text(encoding="utf-8")


def test_each_rank_of_a_vllm_server_gets_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By either kind of manifest, and of Ray; other engines have one each."""
    file = tmp_path / "cluster.toml"
    file.write_text(
        '[model]\ndir = "/data/model"\ndevice = "cuda"\n[store]\nurl = "file:///data/kv"\n'
        '[cluster]\nengine = "vllm"\ntensor_parallel = 4\n'
        '[[nodes]]\nname = "p"\nrole = "prefill"\n[[nodes]]\nname = "d"\nrole = "decode"\n'
    )
    config = load_config(ServeConfig, file)
    assert [gpus_of(config, node) for node in config.nodes] == [4, 4]
    for group in ray_cluster(config, OPTIONS)["spec"]["workerGroupSpecs"]:
        assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert main(["kubernetes", "--config", str(file), "--image", "i", "--claim", "c"]) == 0
    assert capsys.readouterr().out.count("nvidia.com/gpu: '4'") == 4  # requests and limits of two
    many = config_of("2p4d.toml")
    assert {gpus_of(many, replace(node, device="cuda")) for node in many.nodes} == {8}


def test_the_manifest_has_the_fields_of_a_ray_cluster() -> None:
    manifest = yaml.safe_load(render_kuberay(config_of("2p4d.toml"), OPTIONS, "2p4d.toml"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    spec = manifest["spec"]
    assert set(spec) == {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
    assert spec["authOptions"] == {"mode": "token"}
    assert set(spec["headGroupSpec"]) == {"serviceType", "rayStartParams", "template"}
    check_start_params(spec["headGroupSpec"]["rayStartParams"])
    check_pod(spec["headGroupSpec"]["template"])
    for group in spec["workerGroupSpecs"]:
        assert set(group) == GROUP_FIELDS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        check_start_params(group["rayStartParams"])
        check_pod(group["template"])


def check_start_params(params: dict[str, Any]) -> None:
    """A map of strings to strings; the resources are one shell word of JSON."""
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in params.items())
    if "resources" in params:
        (word,) = shlex.split(params["resources"])
        assert all(count >= 1 for count in json.loads(word).values())


def check_pod(template: dict[str, Any]) -> None:
    (container,) = template["spec"]["containers"]
    assert container["name"]
    assert container["image"] == OPTIONS.image
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert all(isinstance(amount, str) for amount in container["resources"]["limits"].values())
    assert all(isinstance(item["value"], str) for item in container.get("env", []))
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_every_node_finds_a_pod_that_offers_its_resource() -> None:
    config = config_of("2p4d.toml")
    first, *others = config.nodes
    config = replace(config, nodes=(replace(first, resource="rack1-pe"), *others))
    groups = ray_cluster(config, OPTIONS)["spec"]["workerGroupSpecs"]
    offered: dict[str, int] = {}
    for group in groups:
        (word,) = shlex.split(group["rayStartParams"]["resources"])
        for name, count in json.loads(word).items():
            offered[name] = offered.get(name, 0) + count * group["replicas"]
    assert offered == {"rack1-pe": 1, "dualpath-prefill": 1, "dualpath-decode": 4}
    gpus = [g["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for g in groups]
    assert gpus == ["8", "8", "8"]


def test_groups_of_one_resource_have_names_of_their_own() -> None:
    """Four decode nodes, two of them with another environment."""
    config = config_of("2p4d.toml")
    nodes = [*config.nodes[:4], *(replace(node, env=("UCX_TLS=tcp",)) for node in config.nodes[4:])]
    groups = ray_cluster(replace(config, nodes=tuple(nodes)), OPTIONS)["spec"]["workerGroupSpecs"]
    assert [group["replicas"] for group in groups] == [2, 2, 2]
    assert len({group["groupName"] for group in groups}) == 3


def test_other_gateways_are_a_group_and_a_service_is_in_front_of_all() -> None:
    config = config_of("2p4d.toml")
    nodes = (*config.nodes, NodeConfig(name="front", role="gateway"))
    config = replace(config, nodes=nodes, ray=replace(config.ray, gateways=3))
    cluster, service = yaml.safe_load_all(render_kuberay(config, OPTIONS, "many.toml"))
    kubernetes_validate.validate(service, "1.31", strict=True)
    head, more = cluster["spec"]["headGroupSpec"], cluster["spec"]["workerGroupSpecs"][0]
    assert (more["groupName"], more["replicas"], set(more)) == ("front", 2, GROUP_FIELDS)
    (port,), selector = service["spec"]["ports"], service["spec"]["selector"]
    for group in (head, more):
        check_start_params(group["rayStartParams"])
        check_pod(group["template"])
        assert json.loads(shlex.split(group["rayStartParams"]["resources"])[0]) == {"dualpath-gateway": 1}
        assert selector.items() <= group["template"]["metadata"]["labels"].items()
        ports = {p["name"]: p["containerPort"] for p in group["template"]["spec"]["containers"][0]["ports"]}
        assert ports[port["targetPort"]] == port["port"] == config.gateway.port
    others = cluster["spec"]["workerGroupSpecs"][1:]
    assert not any("metadata" in group["template"] for group in others)


def test_a_file_without_nodes_has_no_manifest(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[model]\ndir = "m"\n[store]\nurl = "kv"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="needs"):
        render_kuberay(load_config(ServeConfig, file), OPTIONS, "c.toml")
