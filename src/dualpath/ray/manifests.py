"""Kubernetes without an operator: what a configuration needs as Deployments, Services, probes, and what watches them.

A file without [[nodes]] is a server in one pod, of which there may be several over one store: they scale with the
requests that wait. With [[nodes]] there is a Deployment for each role (and resource, and environment) on a plain Ray,
whose head is in the first gateway's pod, with the scheduler. A system's nodes and gateways are those of its file, so
nothing scales it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualpath.cluster.vllm.plan import num_workers
from dualpath.config import NodeConfig, ServeConfig
from dualpath.ray.kuberay import PodOptions, about_vllm, gateway_node

Manifest = dict[str, Any]
_HTTP, _GCS = 8000, 6379
_ON_HEAD, _BESIDE = {"ray": "head"}, {"ray": "worker"}  # labels of gateways' pods
_JOIN_S = 3600  # pods may have to wait for hosts
_CONFIG_DIR, _CONFIG = "/etc/dualpath", "config.toml"
_HEADER = """\
# dualpath on Kubernetes, rendered from {config}. {what}
# Before it: a volume claim {claim} (ReadWriteMany) with model and store, seen at {mount}{secret}
# PodMonitor needs the Prometheus operator{hpa}. Checked against the published schemas, not applied to a cluster.
"""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Of a server in one pod: between so many, one more for each ``queued`` requests that wait in every pod."""

    minimum: int = 1
    maximum: int = 4
    queued: int = 8


def render(config: ServeConfig, options: PodOptions, scaling: Scaling, config_name: str, config_text: str) -> str:
    """All manifests as YAML. ``config_text`` goes into a Secret: it may have keys."""
    import yaml  # comes with transformers

    whole = bool(config.nodes)
    header = _HEADER.format(
        config=config_name,
        what="Deployments for each role, on a plain Ray." if whole else "Every pod is a whole server.",
        claim=options.claim,
        mount=options.mount,
        secret=f";\n#   kubectl create secret generic {_token(config)} --from-literal=token=$(openssl rand -hex 32)"
        if whole
        else ".",
        hpa="" if whole else ", the autoscaler an adapter that serves dualpath_queued_requests",
    )
    found = manifests(config, options, scaling, config_text)
    header += about_vllm(config)
    return header + "---\n".join(yaml.safe_dump(one, sort_keys=False, width=1000) for one in found)


def manifests(config: ServeConfig, options: PodOptions, scaling: Scaling, config_text: str) -> list[Manifest]:
    """Raises ConfigError as ``gateway_node`` does."""
    own = _labels(config, "gateway")
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(config, "config", own),
        "stringData": {_CONFIG: config_text},
    }
    parts = list(_system(config, options)) if config.nodes else list(_server(config, options, scaling))
    return [secret, *parts, _pod_monitor(config)]


# -- a server in one pod ----------------------------------------------------------------------------------------------


def _server(config: ServeConfig, options: PodOptions, scaling: Scaling) -> Iterator[Manifest]:
    engines = (config.cluster.prefill + config.cluster.decode) * config.cluster.engines_per_node
    command = ["dualpath", "serve", "--config", f"{_CONFIG_DIR}/{_CONFIG}", "--host", "0.0.0.0", "--port", str(_HTTP)]
    container = _container(config, options, "server", engines, config.model.device) | {
        "command": command,
        "ports": [{"name": "http", "containerPort": _HTTP}],
        **_probes("/liveness"),
    }
    labels = _labels(config, "gateway")
    yield _deployment(config, options, "gateway", container, scaling.minimum, labels)
    yield _service(config, "gateway", labels, {"ports": [_port("http", _HTTP)]})
    yield {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(config, "gateway", labels),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": _name(config, "gateway")},
            "minReplicas": scaling.minimum,
            "maxReplicas": scaling.maximum,
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": "dualpath_queued_requests"},
                        "target": {"type": "AverageValue", "averageValue": str(scaling.queued)},
                    },
                }
            ],
            # A pod that goes takes its running requests' time with it.
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
        },
    }


# -- nodes as processes of their own ----------------------------------------------------------------------------------


def _system(config: ServeConfig, options: PodOptions) -> Iterator[Manifest]:
    node, count = gateway_node(config), config.ray.gateways
    units = {} if node is None else {node.ray_resource: 1}
    serve = (
        f"exec dualpath serve --config {_CONFIG_DIR}/{_CONFIG} --address $POD_IP:{_GCS} --host 0.0.0.0 --port {_HTTP} "
        f"--join-s {_JOIN_S}"
    )
    # Ray starts a scheduler beside several gateways again while their streams go on: no reason to end their pods.
    container = _container(config, options, "gateway", 1, "cpu") | {
        "env": _environment(config, {}),
        "ports": [{"name": "http", "containerPort": _HTTP}],
        **_probes("/liveness" if count == 1 else "/dualpath"),
    }
    head = container | {
        "command": [
            "bash",
            "-ec",
            f"{_ray_start(config, f'--head --port={_GCS} --include-dashboard=false', units)}\n{serve}",
        ],
        "ports": [*container["ports"], {"name": "gcs", "containerPort": _GCS}],
    }
    labels = _labels(config, "gateway")
    yield _deployment(config, options, "gateway", head, 1, labels | _ON_HEAD)
    if count > 1:
        command = ["bash", "-ec", _join(config, units)]
        yield _deployment(config, options, "gateways", container | {"command": command}, count - 1, labels | _BESIDE)
    yield _service(config, "gateway", labels, {"ports": [_port("http", _HTTP)]})
    # Nodes join before the head's pod can be ready: it is when they have answered.
    gcs = {"ports": [_port("gcs", _GCS)], "publishNotReadyAddresses": True}
    yield _service(config, "head", labels | _ON_HEAD, gcs)
    for nodes in _groups(config):
        yield _workers(config, options, nodes)
        name = nodes[0].name
        yield _service(config, name, _labels(config, name), {"clusterIP": "None"})


def _workers(config: ServeConfig, options: PodOptions, nodes: Sequence[NodeConfig]) -> Manifest:
    """Pods that wait for the head, and end with their Ray: they need no probe. Ray restarts a node's process."""
    first = nodes[0]
    container = _container(config, options, first.role, first.engines, first.device or config.model.device) | {
        "command": ["bash", "-ec", _join(config, {first.ray_resource: 1})],
        "env": _environment(config, first.environment),
    }
    return _deployment(config, options, first.name, container, len(nodes), _labels(config, first.name))


def _groups(config: ServeConfig) -> list[list[NodeConfig]]:
    """Nodes that are alike but for their names."""
    found: dict[str, list[NodeConfig]] = {}
    for node in config.nodes:
        if node.role != "gateway":
            like = json.dumps([node.role, node.ray_resource, node.engines, node.device, node.environment])
            found.setdefault(like, []).append(node)
    return list(found.values())


def _join(config: ServeConfig, resources: Mapping[str, int]) -> str:
    address = f"--address={_name(config, 'head')}:{_GCS} --block"
    return f"exec {_ray_start(config, address, resources)}"


def _ray_start(config: ServeConfig, where: str, resources: Mapping[str, int]) -> str:
    shared = f"--node-ip-address=$POD_IP --object-store-memory={config.ray.object_store_bytes} --disable-usage-stats"
    return f"ray start {where} {shared} --resources='{json.dumps(dict(resources))}'"


def _environment(config: ServeConfig, own: Mapping[str, str]) -> list[Manifest]:
    token = {"secretKeyRef": {"name": _token(config), "key": "token"}}
    return [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": token},
        *({"name": name, "value": value} for name, value in own.items()),
    ]


# -- parts ------------------------------------------------------------------------------------------------------------


def _probes(alive: str) -> Manifest:
    """Ready: requests can be served. Alive: ``alive`` answers; /liveness the gateway's loop and an engine do, /dualpath
    the loop alone does.
    """

    def get(path: str, **times: int) -> Manifest:
        return {"httpGet": {"path": path, "port": "http"}, "timeoutSeconds": 5, **times}

    return {
        "startupProbe": get("/health", periodSeconds=10, failureThreshold=360),  # weights are read for up to an hour
        "readinessProbe": get("/health", periodSeconds=5, failureThreshold=2),
        "livenessProbe": get(alive, periodSeconds=10, failureThreshold=6),
    }


def _container(config: ServeConfig, options: PodOptions, name: str, engines: int, device: str) -> Manifest:
    amount = {"cpu": str(options.cpus * engines), "memory": f"{options.memory_gib * engines}Gi"}
    if device.startswith("cuda"):
        amount["nvidia.com/gpu"] = str(num_workers(config, engines))
    mounts = [{"name": "data", "mountPath": options.mount}, {"name": "config", "mountPath": _CONFIG_DIR}]
    return {
        "name": name,
        "image": options.image,
        "resources": {"requests": dict(amount), "limits": dict(amount)},
        "volumeMounts": [*mounts, {"name": "shm", "mountPath": "/dev/shm"}],
    }


def _deployment(
    config: ServeConfig,
    options: PodOptions,
    part: str,
    container: Manifest,
    replicas: int,
    labels: Mapping[str, str],
) -> Manifest:
    """``labels``: of its pods, and of no other Deployment's."""
    volumes = [
        {"name": "data", "persistentVolumeClaim": {"claimName": options.claim}},
        {"name": "config", "secret": {"secretName": _name(config, "config")}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},  # UCX moves KV through it within a host
    ]
    grace_s = int(config.gateway.drain_s) + 30
    pod = {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": grace_s}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(config, part, labels),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": dict(labels)},
            "template": {"metadata": {"labels": dict(labels)}, "spec": pod},
        }
        | ({"strategy": {"type": "Recreate"}} if config.nodes else {}),
    }


def _service(config: ServeConfig, part: str, pods: Mapping[str, str], spec: Manifest) -> Manifest:
    """``pods``: labels of those behind it."""
    metadata = _metadata(config, part, _labels(config, part))
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": dict(pods)} | spec}


def _port(name: str, number: int) -> Manifest:
    return {"name": name, "port": number, "targetPort": name}


def _pod_monitor(config: ServeConfig) -> Manifest:
    labels = _labels(config, "gateway")
    endpoint = {"port": "http", "path": "/metrics", "interval": "5s"}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": _metadata(config, "gateway", labels),
        "spec": {"selector": {"matchLabels": labels}, "podMetricsEndpoints": [endpoint]},
    }


def _metadata(config: ServeConfig, part: str, labels: Mapping[str, str]) -> Manifest:
    return {"name": _name(config, part), "labels": dict(labels)}


def _name(config: ServeConfig, part: str) -> str:
    return f"{config.ray.name}-{part}"


def _token(config: ServeConfig) -> str:
    return _name(config, "ray-token")


def _labels(config: ServeConfig, part: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "dualpath",
        "app.kubernetes.io/instance": config.ray.name,
        "app.kubernetes.io/component": part,
    }
