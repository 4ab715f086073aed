"""``dualpath kubernetes``: from a configuration to Kubernetes manifests that need no operator of Ray's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualpath.cli.command import add_command
from dualpath.config import ServeConfig, load_config
from dualpath.config.fields import Options, setting
from dualpath.core.errors import ConfigError


class _Options(Options):
    """Write what a file needs on Kubernetes to standard output: Deployments with probes, Services, a PodMonitor. A file
    without [[nodes]] becomes a server in one pod, and an autoscaler on requests that wait; one with [[nodes]] a
    Deployment for each role on a plain Ray. dualpath kuberay writes a RayCluster instead.
    """

    config: Path = setting(metavar="FILE", help="TOML file; it goes into a Secret")
    image: str = setting(metavar="IMAGE", help="container image with dualpath[ray,otel] installed: deploy/Dockerfile")
    claim: str = setting(metavar="CLAIM", help="volume claim (ReadWriteMany) that holds model and store")
    mount: str = setting("/data", metavar="DIR", help="where pods see it")
    cpus: int = setting(8, minimum=1, help="CPUs for each engine")
    memory_gib: int = setting(32, minimum=1, help="GiB for each engine")
    min_pods: int = setting(1, minimum=1, help="without [[nodes]]: pods, at least")
    max_pods: int = setting(4, minimum=1, help="without [[nodes]]: pods, at most")
    queued_per_pod: int = setting(8, minimum=1, help="without [[nodes]]: requests that wait in a pod, before one more")


def add(verbs: Any) -> None:
    add_command(verbs, "kubernetes", "write Kubernetes manifests for a file, without an operator", _render, _Options)


def _render(options: _Options) -> int:
    from dualpath.ray.kuberay import PodOptions
    from dualpath.ray.manifests import Scaling, render

    if options.max_pods < options.min_pods:
        raise ConfigError(f"--max-pods: must be at least --min-pods, {options.min_pods}, not {options.max_pods}")
    config = load_config(ServeConfig, options.config)
    text = options.config.read_text(encoding="utf-8")
    pods = PodOptions(options.image, options.claim, options.mount, options.cpus, options.memory_gib)
    scaling = Scaling(options.min_pods, options.max_pods, options.queued_per_pod)
    print(render(config, pods, scaling, options.config.name, text), end="")
    return 0
