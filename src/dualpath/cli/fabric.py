"""``dualpath fabric``: what the compute network needs so that model execution and KV stay apart on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualpath.cli import fabric_check
from dualpath.cli.command import add_command, add_group
from dualpath.config.fields import Options, setting
from dualpath.core.errors import ConfigError


class _Options(Options):
    """Write what an operator applies to the compute network, and the environment of every engine. Nothing is changed on
    this machine; each file says at its top where and how to apply it, and how to see that it took effect.

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

    fabric: str = setting(choices=fabric_check.FABRICS, help="what the compute network is made of")
    config: Path = setting(metavar="FILE", help="TOML file with [[nodes]]")
    out: Path | None = setting(
        None, metavar="DIR", none_means="print them, one after the other", help="where to write the files"
    )


def add(verbs: Any) -> None:
    actions = add_group(verbs, "fabric", "traffic classes of the compute network: InfiniBand, RoCE, Linux tc")
    text = "write the network's settings and the engines' environment"
    add_command(actions, "render", text, _render, _Options)
    fabric_check.add(actions)


def _render(options: _Options) -> int:
    from dualpath.traffic.fabric import Fabric, render
    from dualpath.validation.fabric_nodes import read_fabric

    files = render(read_fabric(options.config, Fabric(options.fabric)))
    if options.out is None:
        print("\n".join(f"==> {path} <==\n{text}" for path, text in files.items()), end="")
        return 0
    for name, text in files.items():
        _write(options.out / name, text)
    for name in files:
        print(options.out / name)
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755 if path.suffix == ".sh" else 0o644)
    except OSError as error:
        raise ConfigError(f"--out: cannot write {path}: {error.strerror or error}") from None
