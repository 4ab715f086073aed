"""``dualpath kuberay``: from a cluster.toml to the manifest of a Ray cluster on Kubernetes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualpath.cli.command import add_command
from dualpath.config import ServeConfig, load_config
from dualpath.config.fields import Options, setting


class _Options(Options):
    """Write the RayCluster that a file's [[nodes]] need, for the KubeRay operator, to standard output."""

    config: Path = setting(metavar="FILE", help="TOML file with [[nodes]]")
    image: str = setting(metavar="IMAGE", help="container image with dualpath[ray] installed")
    claim: str = setting(metavar="CLAIM", help="volume claim (ReadWriteMany) that holds model and store")
    mount: str = setting("/data", metavar="DIR", help="where pods see it")
    cpus: int = setting(8, minimum=1, help="CPUs for each engine")
    memory_gib: int = setting(32, minimum=1, help="GiB for each engine")


def add(verbs: Any) -> None:
    add_command(verbs, "kuberay", "write a Kubernetes manifest for the nodes of a file", _render, _Options)


def _render(options: _Options) -> int:
    from dualpath.ray.kuberay import PodOptions, render_kuberay

    config = load_config(ServeConfig, options.config)
    pods = PodOptions(options.image, options.claim, options.mount, options.cpus, options.memory_gib)
    print(render_kuberay(config, pods, options.config.name), end="")
    return 0
