"""A KubeRay ``RayCluster`` whose pods offer what a configuration's nodes ask for: rendered as YAML, applied by kubectl.

Fields are those of the RayCluster custom resource, ray.io/v1 (ray-project.github.io/kuberay/reference/api). Nodes of
one resource and environment are one worker group. The head pod runs the gateway: ``dualpath up --address auto`` in it
starts the system, as it does on any Ray cluster.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualpath.config import NodeConfig, ServeConfig
from dualpath.core.errors import ConfigError

RAY_VERSION = "2.60.0"
_HEADER = """\
# A Ray cluster for dualpath on Kubernetes, for the KubeRay operator 1.5.1 or newer. Rendered from a cluster.toml with
#   dualpath kuberay --config {config} --image {image} --claim {claim}
# Apply it, then start the system in the head pod, where the same cluster.toml must be readable:
#   kubectl apply -f FILE
#   kubectl exec -it $(kubectl get pod -l ray.io/cluster={name},ray.io/node-type=head -o name) -- \\
#     dualpath up --config cluster.toml --address auto --host 0.0.0.0
# Every pod mounts the volume claim at {mount}: model and store belong there. The image needs dualpath[ray] and, for the
# probes of KubeRay, ray[default].
"""


@dataclass(frozen=True, slots=True)
class PodOptions:
    image: str
    claim: str  # persistent volume claim, ReadWriteMany
    mount: str = "/data"
    cpus: int = 8  # of a node's pod, for each of its engines
    memory_gib: int = 32


def render_kuberay(config: ServeConfig, options: PodOptions, config_name: str) -> str:
    """The manifest as text. Raises ConfigError where there are no nodes."""
    import yaml  # comes with Ray and with transformers

    if not config.nodes:
        raise ConfigError("a Kubernetes manifest needs [[nodes]]")
    fields = {"config": config_name, "image": options.image, "claim": options.claim, "mount": options.mount}
    header = _HEADER.format(name=config.ray.name, **fields)
    manifest: str = yaml.safe_dump(ray_cluster(config, options), sort_keys=False)
    return header + manifest


def ray_cluster(config: ServeConfig, options: PodOptions) -> dict[str, Any]:
    """The custom resource."""
    gateway = next((node for node in config.nodes if node.role == "gateway"), None)
    groups: dict[tuple[str, str], list[NodeConfig]] = {}
    for node in config.nodes:
        if node.role != "gateway":
            groups.setdefault((node.ray_resource, json.dumps(node.environment)), []).append(node)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": config.ray.name, "labels": {"app.kubernetes.io/name": "dualpath"}},
        "spec": {
            "rayVersion": RAY_VERSION,
            "authOptions": {"mode": "token"},
            "headGroupSpec": _head(config, gateway, options),
            "workerGroupSpecs": [_worker_group(config, nodes, options) for nodes in groups.values()],
        },
    }


def _head(config: ServeConfig, gateway: NodeConfig | None, options: PodOptions) -> dict[str, Any]:
    ports = [
        {"name": "gcs", "containerPort": 6379},
        {"name": "gateway", "containerPort": config.gateway.port},
    ]
    params = _start_params(config, {} if gateway is None else {gateway.ray_resource: 1})
    container = {"name": "ray-head", "ports": ports} | _container(options, 2, 8, 0)
    return {"serviceType": "ClusterIP", "rayStartParams": params, "template": _pod(container, options)}


def _worker_group(config: ServeConfig, nodes: Sequence[NodeConfig], options: PodOptions) -> dict[str, Any]:
    first = nodes[0]
    num_gpus = first.engines if (first.device or config.model.device).startswith("cuda") else 0
    cpus = options.cpus * first.engines
    container = {"name": "ray-worker"} | _container(options, cpus, options.memory_gib * first.engines, num_gpus)
    if first.environment:
        container["env"] = [{"name": name, "value": value} for name, value in first.environment.items()]
    return {
        "groupName": first.name,  # several groups may have one resource, and that may be no name for Kubernetes
        "replicas": len(nodes),
        "minReplicas": len(nodes),
        "maxReplicas": len(nodes),
        "rayStartParams": _start_params(config, {first.ray_resource: 1}),
        "template": _pod(container, options),
    }


def _start_params(config: ServeConfig, resources: Mapping[str, int]) -> dict[str, str]:
    """Arguments of ``ray start``, all strings. Resources are JSON in a shell's quotes, as KubeRay passes them on.

    The dashboard stays on: KubeRay's probes ask it.
    """
    params = {"object-store-memory": str(config.ray.object_store_bytes)}
    if resources:
        params["resources"] = json.dumps(json.dumps(resources))
    return params


def _container(options: PodOptions, cpus: int, memory_gib: int, num_gpus: int) -> dict[str, Any]:
    amount = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"}
    if num_gpus:
        amount["nvidia.com/gpu"] = str(num_gpus)
    return {
        "image": options.image,
        "resources": {"requests": dict(amount), "limits": dict(amount)},
        "volumeMounts": [{"name": "data", "mountPath": options.mount}],
    }


def _pod(container: Mapping[str, Any], options: PodOptions) -> dict[str, Any]:
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": options.claim}}
    return {"spec": {"containers": [dict(container)], "volumes": [volume]}}
