"""``dualpath vllm config``: how a vLLM server is started that ``dualpath serve --vllm-join`` can then use."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from dualpath.cli.command import Given, add_command, add_group
from dualpath.config import ServeConfig, load_config
from dualpath.config.fields import Options, setting
from dualpath.config.vllm import LINE_PORT_OFFSET


class _Options(Options):
    """Print what starts one vLLM server of a cluster: its --kv-transfer-config, the whole command, and what dualpath
    serve is told to join it. Nothing is started. Model, store, sizes and deadlines are those of dualpath serve, by the
    same flags or file.

    The server and dualpath serve need the same secret in their environment, in DUALPATH_SECRET or in a file that
    DUALPATH_SECRET_FILE names, and DualPath installed beside vLLM: pip install --no-deps dualpath.
    """

    role: str = setting(choices=("prefill", "decode"), help="what the server is to do")
    name: str | None = setting(
        None, flag="engine-id", none_means="ROLE-0", help="the engine's name, unique in the cluster"
    )
    address: str = setting(
        "127.0.0.1", flag="listen", help="address of this server that clients and other servers reach it by"
    )
    http_port: int = setting(8001, minimum=1, maximum=65535, help="port of its API")
    line_port: int | None = setting(
        None, minimum=1, maximum=65535, none_means=f"--http-port + {LINE_PORT_OFFSET}", help="port of its control line"
    )
    on_cpu: bool = setting(False, help="vLLM computes on a CPU: set the size of its KV cache in bytes")
    config: Path | None = setting(None, metavar="FILE", help="TOML file of settings; flags win over it")


def add(verbs: Any) -> None:
    actions = add_group(verbs, "vllm", "start vLLM servers for dualpath serve --engine vllm")
    add_command(actions, "config", "print how a server is started", _config, _Options, root=ServeConfig)


def _config(options: _Options, given: Given) -> int:
    from dualpath.cluster.vllm.command import arguments, kv_transfer_config
    from dualpath.cluster.vllm.plan import ServerPlace, connector_settings, sizes_of
    from dualpath.core.plan import Role

    config = load_config(ServeConfig, options.config, given)
    line_port = options.line_port or options.http_port + LINE_PORT_OFFSET
    place = ServerPlace(
        options.name or f"{options.role}-0",
        Role(options.role),
        f"http://{options.address}:{options.http_port}",
        options.address,
        line_port,
    )
    geometry, sizes = sizes_of(config)
    settings = connector_settings(config, place, sizes, lease_s=None)
    command = [
        str(config.vllm.python or "python"),
        *arguments(config, place, settings, geometry, sizes, on_cpu=options.on_cpu),
    ]
    print(f"# --kv-transfer-config\n{kv_transfer_config(settings)}\n")
    print(f"# the whole command; DUALPATH_SECRET or DUALPATH_SECRET_FILE must be set\n{shlex.join(command)}\n")
    joined = f"{options.role}={place.url},{options.address}:{line_port}"
    print(f"# to join it\ndualpath serve --engine vllm --vllm-join {joined} ...")
    return 0
