"""Settings know their type, range and help, and a table that exists is right."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dualpath.config import ClusterConfig, GatewayConfig, MemoryConfig, ModelConfig, ServeConfig, StoreConfig
from dualpath.config.fields import REQUIRED, Entry, Table, entries, setting, tables
from dualpath.core.errors import ConfigError

SETTINGS = [entry for _, table in tables(ServeConfig) for entry in entries(table)]


def _name(entry: Entry) -> str:
    return f"{entry.table}.{entry.name}"


@pytest.mark.parametrize("entry", SETTINGS, ids=_name)
def test_every_setting_explains_itself(entry: Entry) -> None:
    assert len(entry.setting.help) > 5
    if entry.default is None:
        assert entry.setting.none_means, "say what happens when it is not set"


@pytest.mark.parametrize("entry", [e for e in SETTINGS if e.kind in (int, float)], ids=_name)
def test_every_number_has_a_lower_bound(entry: Entry) -> None:
    assert entry.setting.minimum is not None or entry.setting.above is not None


@pytest.mark.parametrize("entry", [e for e in SETTINGS if e.kind is float], ids=_name)
def test_quantities_carry_their_unit_in_the_name(entry: Entry) -> None:
    assert entry.name.endswith(("_s", "_ms", "_mbps", "_bytes", "_fraction"))


def test_table_names_match_the_root_and_flags_are_unique() -> None:
    assert all(name == table.TABLE for name, table in tables(ServeConfig))
    flags = [entry.flag for entry in SETTINGS]
    assert len(flags) == len(set(flags))


def test_defaults_make_a_valid_configuration() -> None:
    config = ServeConfig(model=ModelConfig(dir=Path("m")), store=StoreConfig(url="memory://"))
    assert (config.cluster.prefill, config.cluster.decode, config.store.block_tokens) == (1, 1, 64)
    assert (config.gateway.host, config.gateway.port, config.gateway.api_keys) == ("127.0.0.1", 8000, ())


def test_nobody_writes_to_a_table() -> None:
    with pytest.raises(FrozenInstanceError):
        GatewayConfig().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("table", "values", "reason"),
    [
        (ClusterConfig, {"prefill": 0}, "[cluster] prefill: must be at least 1, not 0"),
        (ClusterConfig, {"prefill": True}, "[cluster] prefill: must be a whole number, not True"),
        (ClusterConfig, {"prefill": 1.0}, "[cluster] prefill: must be a whole number, not 1.0"),
        (ClusterConfig, {"storage_nic_mbps": math.nan}, "[cluster] storage_nic_mbps: must be a finite number, not nan"),
        (ClusterConfig, {"storage_nic_mbps": math.inf}, "[cluster] storage_nic_mbps: must be a finite number, not inf"),
        (ClusterConfig, {"storage_nic_mbps": 0}, "[cluster] storage_nic_mbps: must be more than 0, not 0"),
        (ClusterConfig, {"path": "fast"}, "[cluster] path: must be one of prefill, decode, shorter, split"),
        (MemoryConfig, {"device_memory_fraction": 1.5}, "[memory] device_memory_fraction: must be at most 1, not 1.5"),
        (MemoryConfig, {"decode_staging_bytes": None}, "[memory] decode_staging_bytes: is required"),
        (GatewayConfig, {"port": 65536}, "[gateway] port: must be at most 65535, not 65536"),
        (GatewayConfig, {"host": "  "}, "[gateway] host: must not be empty"),
        (GatewayConfig, {"api_keys": "secret"}, "[gateway] api_keys: must be a list of strings, not 'secret'"),
        (GatewayConfig, {"api_keys": ("a", "")}, "[gateway] api_keys: must not be empty"),
        (ModelConfig, {"dir": "text"}, "[model] dir: must be a path, not 'text'"),
        (
            ModelConfig,
            {"dir": Path("m"), "device": "gpu"},
            "[model] device: must be auto, cpu, cuda or cuda:N, not 'gpu'",
        ),
    ],
)
def test_a_wrong_value_never_becomes_a_table(table: type[Table], values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        table(**values)
    assert str(raised.value).startswith(reason)


def test_replace_checks_too() -> None:
    with pytest.raises(ConfigError, match="port"):
        replace(GatewayConfig(), port=-1)


def test_a_new_table_needs_nothing_but_its_fields() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Small(Table):
        TABLE = "small"
        needed: str = setting(help="is needed")
        wait_s: float = setting(1.5, above=0, help="waits")

    needed, wait = entries(Small)
    assert needed.default is REQUIRED
    assert (wait.kind, wait.flag, wait.optional) == (float, "--wait-s", False)
    assert dataclasses.asdict(Small(needed="x")) == {"needed": "x", "wait_s": 1.5}
