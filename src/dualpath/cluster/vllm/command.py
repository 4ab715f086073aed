"""How one vLLM server is started: its arguments, what is in its environment, and its connector's settings as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from dualpath.cluster.sizes import Sizes
from dualpath.cluster.ucx_network import within_host
from dualpath.cluster.vllm.environment import NOT_FROM_HERE, Environment
from dualpath.cluster.vllm.plan import LOOPBACK, ServerPlace, num_workers, rank_bytes_per_token
from dualpath.config import ServeConfig
from dualpath.core.errors import ConfigError
from dualpath.core.geometry import KvGeometry
from dualpath.core.handshake import SECRET_VARIABLE
from dualpath.core.plan import Role
from dualpath.vllm.settings import KEY, WEIGHTS_ARGUMENTS, ConnectorSettings, transfer_config

API_KEY_VARIABLE = "VLLM_API_KEY"
_DEVICES = "CUDA_VISIBLE_DEVICES"
_MODULE = "vllm.entrypoints.openai.api_server"


def kv_transfer_config(settings: ConnectorSettings) -> str:
    """For ``--kv-transfer-config``. What has its default is left out."""
    found = transfer_config(settings)
    told = found["kv_connector_extra_config"][KEY]
    optional = ConnectorSettings.__struct_fields__[-len(ConnectorSettings.__struct_defaults__) :]
    for name, default in zip(optional, ConnectorSettings.__struct_defaults__, strict=True):
        if told.get(name) == default:
            del told[name]
    return json.dumps(found, separators=(",", ":"))


def arguments(
    config: ServeConfig,
    place: ServerPlace,
    settings: ConnectorSettings,
    geometry: KvGeometry,
    sizes: Sizes,
    *,
    on_cpu: bool,
) -> list[str]:
    """Without the Python in front. What the user gives comes last, and so is stronger."""
    model = config.model
    found = ["-m", _MODULE, "--model", str(model.dir.absolute())]
    found += ["--served-model-name", model.served_name or model.dir.absolute().name]
    found += ["--host", place.host, "--port", str(place.port), "--dtype", model.dtype]
    found += ["--max-model-len", str(sizes.max_context_tokens), "--block-size", str(geometry.block_tokens)]
    found += ["--enable-scale-out", "--no-async-scheduling", "--disable-uvicorn-access-log"]
    num_tokens = config.memory.decode_kv_tokens
    if place.role is Role.PREFILL:
        num_tokens = config.memory.prefill_kv_tokens
    if on_cpu and num_tokens is None:
        num_tokens = sizes.decode_kv_tokens
    if num_tokens is not None:
        spare = 2 * geometry.block_tokens  # vLLM sets a block aside
        found += ["--kv-cache-memory-bytes", str((num_tokens + spare) * rank_bytes_per_token(config, geometry))]
    elif not on_cpu:
        found += ["--gpu-memory-utilization", str(config.memory.device_memory_fraction)]
    if (num_ranks := config.cluster.tensor_parallel) > 1:
        found += ["--tensor-parallel-size", str(num_ranks)]
    found += [*WEIGHTS_ARGUMENTS, "--kv-transfer-config", kv_transfer_config(settings)]
    return found + list(config.vllm.args)


def devices(num_servers: int, num_devices: int, own: Mapping[str, str], num_ranks: int = 1) -> list[str]:
    """Which CUDA devices each server is given, of ``num_devices`` (not 0). Raises ConfigError.

    Those that the environment names are dealt out, one for each rank. Where it names none, servers share if they must.
    """
    named = [name.strip() for name in own.get(_DEVICES, "").split(",") if name.strip()]
    wanted = num_servers * num_ranks
    if named and len(named) < wanted:
        ranks = "" if num_ranks == 1 else f" of {num_ranks} ranks"
        raise ConfigError(
            f"{_DEVICES}={','.join(named)} names {len(named)} for {num_servers} vLLM servers{ranks}: name a device for "
            "each, or unset it to have servers share devices"
        )
    if num_ranks > num_devices:
        raise ConfigError(f"--tensor-parallel {num_ranks}: there are {num_devices} CUDA devices")
    dealt = named or [str(number % num_devices) for number in range(wanted)]
    return [",".join(dealt[first : first + num_ranks]) for first in range(0, wanted, num_ranks)]


def server_environment(
    config: ServeConfig,
    number: int,
    num_servers: int,
    found: Environment,
    keys: tuple[str, str],
    package_dir: Path,
    host: str = LOOPBACK,
) -> dict[str, str]:
    """Of the ``number``-th of the servers that are started together. What the user has set is stronger.

    ``keys``: the control line's secret, and the API's key. ``host``: where others reach it; by default none but this
    machine's do. Raises ConfigError.
    """
    secret, api_key = keys
    own: Mapping[str, str] = os.environ
    path = [str(package_dir), *filter(None, [own.get("PYTHONPATH")])]
    derived = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": host,
        **NOT_FROM_HERE,
        **(within_host(own) if host == LOOPBACK else {}),
    }
    its_own = {SECRET_VARIABLE: secret, API_KEY_VARIABLE: api_key, "PYTHONPATH": os.pathsep.join(path)}
    if found.num_devices:
        its_own[_DEVICES] = devices(num_servers, found.num_devices, own, config.cluster.tensor_parallel)[number]
    else:
        threads = config.cluster.threads_per_engine
        threads = threads or max(1, (os.cpu_count() or 1) // num_workers(config, num_servers))
        derived |= {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return {**derived, **own, **its_own}
