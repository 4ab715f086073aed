"""``dualpath kuberay``: from a cluster.toml to the manifest of a Ray cluster on Kubernetes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dualpath.config import ServeConfig, load_config


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "kuberay",
        help="write a Kubernetes manifest for the nodes of a file",
        description="Write the RayCluster that a file's [[nodes]] need, for the KubeRay operator, to standard output.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="TOML file with [[nodes]]")
    parser.add_argument("--image", required=True, help="container image with dualpath[ray] installed")
    parser.add_argument("--claim", required=True, help="volume claim (ReadWriteMany) that holds model and store")
    parser.add_argument("--mount", default="/data", metavar="DIR", help="where pods see it (default: /data)")
    parser.add_argument("--cpus", type=int, default=8, metavar="N", help="CPUs for each engine (default: 8)")
    parser.add_argument("--memory-gib", type=int, default=32, metavar="N", help="GiB for each engine (default: 32)")
    parser.set_defaults(run=_render)


def _render(arguments: argparse.Namespace) -> int:
    from dualpath.core.errors import ConfigError
    from dualpath.launch.ray.kuberay import PodOptions, render_kuberay

    for name in ("cpus", "memory_gib"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: must be at least 1, not {getattr(arguments, name)}")
    config = load_config(ServeConfig, arguments.config)
    options = PodOptions(arguments.image, arguments.claim, arguments.mount, arguments.cpus, arguments.memory_gib)
    print(render_kuberay(config, options, arguments.config.name), end="")
    return 0
