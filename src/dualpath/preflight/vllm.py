"""Can vLLM servers be started, and what are they asked for? Without starting any."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from dualpath.cluster.vllm.command import devices
from dualpath.cluster.vllm.environment import find_environment
from dualpath.cluster.vllm.plan import check, sizes_of
from dualpath.config import NodeConfig, ServeConfig
from dualpath.core.errors import ConfigError
from dualpath.preflight.line import Line, fail, ok, warn

_TESTED = "0.32."


def check_vllm(config: ServeConfig, nodes: Sequence[NodeConfig] = ()) -> Iterator[Line]:
    """Of this host, for ``nodes`` that are to run on it; without any, all servers are. Seconds, where there is a vLLM.

    Nothing for engines of ours, and for a host with a gateway alone.
    """
    num_servers = sum(node.role != "gateway" for node in nodes)
    if config.cluster.engine != "vllm" or (nodes and not num_servers):
        return
    remedy = "docs/vllm.md"
    try:
        check(config)
        _, sizes = sizes_of(config)
        yield ok("vllm sizes", f"contexts of {sizes.max_context_tokens} tokens, {sizes.decode_slots} staging slots")
        if config.vllm.join:
            yield ok("vllm", f"{len(config.vllm.join)} servers to join")
            return
        found = find_environment(config.vllm)
        if found.num_devices:
            num_servers = num_servers or config.cluster.prefill + config.cluster.decode
            devices(num_servers, found.num_devices, os.environ, config.cluster.tensor_parallel)
    except ConfigError as error:
        yield fail("vllm", str(error), remedy)
        return
    seen = f"{found.num_devices} CUDA devices" if found.num_devices else "no CUDA device"
    text = f"{found.version} for {found.python}, {seen}"
    yield ok("vllm", text) if found.version.startswith(_TESTED) else warn("vllm", text, f"made for vLLM {_TESTED}*")
