"""What a vLLM server is told about its part in DualPath: ``kv_connector_extra_config["dualpath"]``.

The secret of the control line is no setting: ``core.handshake.read_secret`` takes it from the server's environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from dualpath.core.errors import ConfigError
from dualpath.core.plan import Role
from dualpath.store.open import parse_url

KEY = "dualpath"  # of our settings in vLLM's, and of our parameters in a request's ``kv_transfer_params``
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
_Port: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]

CONNECTOR = "DualPathConnector"
MODULE = "dualpath.vllm.connector"
WEIGHTS_ARGUMENTS = (  # beside --kv-transfer-config: by these a server stands still, and its weights are changed
    *("--middleware", "dualpath.vllm.door.Door"),
    *("--worker-extension-cls", "dualpath.vllm.extension.WorkerExtension"),
)


class ConnectorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sizes are fixed at start; all memory is allocated once. Slots are of one Full Block each."""

    role: Literal["prefill", "decode"]
    engine_id: _Name  # unique in the cluster
    node_id: str = ""  # whose storage NIC it uses; empty: the engine's own
    host: str = "127.0.0.1"  # of the control line: this address and no other is listened on
    port: _Port
    store_url: _Name
    num_slots: _Count  # staging slots; on the decode side they must hold the longest prompt
    num_write_slots: _Count = 8  # for blocks that fill while decoding
    nic_bytes_per_s: _Positive | None = None  # emulated storage NIC; None: as fast as it is
    layers_ahead: _Count = 3  # layers whose loads are under way while one computes
    verify: Literal["auto", "all", "storage"] = "auto"  # auto: end to end where KV is in host memory
    slot_s: _Positive = 60.0  # longest wait for staging slots
    storage_s: _Positive = 30.0
    transfer_s: _Positive = 30.0
    lease_s: _Positive | None = None  # the server ends itself when its scheduler is silent for so long; None: never

    @property
    def engine_role(self) -> Role:
        return Role(self.role)


def read_settings(extra_config: Mapping[str, Any]) -> ConnectorSettings:
    """Raises ConfigError, one line that names the field."""
    if KEY not in extra_config:
        raise ConfigError(f'--kv-transfer-config: kv_connector_extra_config has no "{KEY}"')
    try:
        settings = msgspec.convert(extra_config[KEY], ConnectorSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--kv-transfer-config: kv_connector_extra_config.{KEY}: {error}") from None
    scheme, *_ = parse_url(settings.store_url)
    if scheme == "memory":
        raise ConfigError(f"{KEY}.store_url: {settings.store_url} is one process's memory; both sides need one store")
    return settings


def transfer_config(settings: ConnectorSettings) -> dict[str, Any]:
    """The server's ``--kv-transfer-config``, to be written as JSON."""
    return {
        "kv_connector": CONNECTOR,
        "kv_connector_module_path": MODULE,
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {KEY: msgspec.to_builtins(settings)},
    }
