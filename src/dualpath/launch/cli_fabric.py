"""``dualpath fabric``: what the compute network needs so that model execution and KV stay apart on it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dualpath.core.errors import ConfigError
from dualpath.launch import cli_fabric_check

_FABRICS = ("infiniband", "roce", "ethernet")

RENDER = """\
Write what an operator applies to the compute network, and the environment of every engine. Nothing is changed on this
machine; each file says at its top where and how to apply it, and how to see that it took effect.

--config names the file of dualpath up. Read are the [[nodes]] tables:
  [[nodes]]
  name = "pe0"
  role = "prefill"
  storage_nic = "ens1f0"
  compute_nics = ["ens2f0", "ens3f0"]     # one for each engine of the host
  compute_nic_mbps = 400000               # Mbit/s
  rdma_devices = ["mlx5_0", "mlx5_1"]     # infiniband and roce: in the same order; DEVICE or DEVICE:PORT
  gid_index = 3                           # optional: UCX and NCCL find it themselves
and a [fabric] table, if there: kv_network (default 10.3.0.0/16) and model_network (default 10.2.0.0/16).
"""


def add(verbs: Any) -> None:
    fabric = verbs.add_parser("fabric", help="traffic classes of the compute network: InfiniBand, RoCE, Linux tc")
    actions = fabric.add_subparsers(title="commands", dest="action", metavar="COMMAND", required=True)
    _add_render(actions)
    cli_fabric_check.add(actions)


def _add_render(actions: Any) -> None:
    parser = actions.add_parser(
        "render",
        help="write the network's settings and the engines' environment",
        description=RENDER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fabric", required=True, choices=_FABRICS, help="what the compute network is made of")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="TOML file with [[nodes]]")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write the files (default: print them, one after the other)"
    )
    parser.set_defaults(run=_render)


def _render(arguments: argparse.Namespace) -> int:
    from dualpath.launch.fabric_nodes import read_fabric
    from dualpath.traffic.fabric import Fabric, render

    files = render(read_fabric(arguments.config, Fabric(arguments.fabric)))
    if arguments.out is None:
        print("\n".join(f"==> {path} <==\n{text}" for path, text in files.items()), end="")
        return 0
    for name, text in files.items():
        _write(arguments.out / name, text)
    for name in files:
        print(arguments.out / name)
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755 if path.suffix == ".sh" else 0o644)
    except OSError as error:
        raise ConfigError(f"--out: cannot write {path}: {error.strerror or error}") from None
