"""A KubeRay ``RayCluster`` whose pods offer what a configuration's nodes ask for: rendered as YAML, applied by kubectl.

Fields are those of the RayCluster custom resource, ray.io/v1 (ray-project.github.io/kuberay/reference/api). Nodes of
one resource and environment are one worker group. The head pod runs the first gateway: ``dualpath up --address auto``
in it starts the system, as it does on any Ray cluster. Others have a group of their own, and a Service in front of all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualpath.cluster.vllm.plan import check, num_workers
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
_VLLM = "# The image also needs vLLM, for {python} (docs/vllm.md).\n"


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
    header += about_vllm(config)
    found = [ray_cluster(config, options), *([_service(config)] if config.ray.gateways > 1 else [])]
    return header + "---\n".join(yaml.safe_dump(one, sort_keys=False) for one in found)


def ray_cluster(config: ServeConfig, options: PodOptions) -> dict[str, Any]:
    """The custom resource. Raises ConfigError as ``gateway_node`` does."""
    gateway = gateway_node(config)
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
            "workerGroupSpecs": [
                *_more_gateways(config, gateway, options),
                *(_worker_group(config, nodes, options) for nodes in groups.values()),
            ],
        },
    }


def about_vllm(config: ServeConfig) -> str:
    """A line for the header where engines are vLLM servers. Raises ConfigError for what these cannot be asked."""
    if config.cluster.engine != "vllm":
        return ""
    check(config)
    return _VLLM.format(python=config.vllm.python or "the Python that runs dualpath")


def gateway_node(config: ServeConfig) -> NodeConfig | None:
    """The file's entry about gateways. Raises ConfigError where several have none: nodes' pods are not for them."""
    node = next((node for node in config.nodes if node.role == "gateway"), None)
    if node is None and config.ray.gateways > 1:
        raise ConfigError(
            f"[ray] gateways: {config.ray.gateways} on Kubernetes need pods of their own: add [[nodes]] with "
            'name = "gateway", role = "gateway"'
        )
    return node


def _service(config: ServeConfig) -> dict[str, Any]:
    """In front of all gateways."""
    port = {"name": "gateway", "port": config.gateway.port, "targetPort": "gateway"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{config.ray.name}-gateway", "labels": {"app.kubernetes.io/name": "dualpath"}},
        "spec": {"selector": _gateway_labels(config), "ports": [port]},
    }


def _gateway_labels(config: ServeConfig) -> dict[str, str]:
    return {"app.kubernetes.io/instance": config.ray.name, "app.kubernetes.io/component": "gateway"}


def _head(config: ServeConfig, gateway: NodeConfig | None, options: PodOptions) -> dict[str, Any]:
    params = _start_params(config, {} if gateway is None else {gateway.ray_resource: 1})
    gcs, container = {"name": "gcs", "containerPort": 6379}, _container(options, 2, 8, 0)
    container = {"name": "ray-head", "ports": [gcs, _http(config)]} | container
    labels = _gateway_labels(config) if config.ray.gateways > 1 else {}
    return {"serviceType": "ClusterIP", "rayStartParams": params, "template": _pod(container, options, labels)}


def _more_gateways(config: ServeConfig, gateway: NodeConfig | None, options: PodOptions) -> Iterator[dict[str, Any]]:
    """A group of those beside the head's."""
    if gateway is not None and config.ray.gateways > 1:
        probe = {"httpGet": {"path": "/health", "port": "gateway"}, "periodSeconds": 5, "timeoutSeconds": 5}
        container = {"name": "ray-worker", "ports": [_http(config)], "readinessProbe": probe}
        pod = _pod(container | _container(options, 2, 8, 0), options, _gateway_labels(config))
        yield _group(gateway.name, config.ray.gateways - 1, _start_params(config, {gateway.ray_resource: 1}), pod)


def _http(config: ServeConfig) -> dict[str, Any]:
    return {"name": "gateway", "containerPort": config.gateway.port}


def _worker_group(config: ServeConfig, nodes: Sequence[NodeConfig], options: PodOptions) -> dict[str, Any]:
    first = nodes[0]
    num_gpus = num_workers(config, first.engines) if (first.device or config.model.device).startswith("cuda") else 0
    cpus = options.cpus * first.engines
    container = {"name": "ray-worker"} | _container(options, cpus, options.memory_gib * first.engines, num_gpus)
    if first.environment:
        container["env"] = [{"name": name, "value": value} for name, value in first.environment.items()]
    # Several groups may have one resource, and that may be no name for Kubernetes.
    return _group(first.name, len(nodes), _start_params(config, {first.ray_resource: 1}), _pod(container, options))


def _group(name: str, replicas: int, start_params: Mapping[str, str], pod: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "groupName": name,
        "replicas": replicas,
        "minReplicas": replicas,
        "maxReplicas": replicas,
        "rayStartParams": dict(start_params),
        "template": dict(pod),
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


def _pod(container: Mapping[str, Any], options: PodOptions, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": options.claim}}
    metadata = {"metadata": {"labels": dict(labels)}} if labels else {}
    return metadata | {"spec": {"containers": [dict(container)], "volumes": [volume]}}
