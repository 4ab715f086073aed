"""What a vLLM server is told, and what it refuses to be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dualpath.core.errors import ConfigError
from dualpath.core.plan import Role
from dualpath.vllm.settings import KEY, ConnectorSettings, read_settings, transfer_config

GOOD: dict[str, Any] = {
    "role": "prefill",
    "engine_id": "p0",
    "port": 7801,
    "store_url": "file:///kv",
    "num_slots": 64,
}


def test_what_is_written_for_vllm_is_read_by_the_connector() -> None:
    settings = ConnectorSettings(
        role="decode", engine_id="d0", port=7802, store_url="s3://kv-blocks/all", num_slots=16, nic_bytes_per_s=5e7
    )
    told = json.loads(json.dumps(transfer_config(settings)))
    assert read_settings(told["kv_connector_extra_config"]) == settings
    assert told["kv_load_failure_policy"] == "recompute"
    assert settings.engine_role is Role.DECODE


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"role": "both"}, "role"),
        ({"num_slots": 0}, "num_slots"),
        ({"port": 70000}, "port"),
        ({"engine_id": ""}, "engine_id"),
        ({"layers_ahead": 0}, "layers_ahead"),
        ({"nic_bytes_per_s": -1.0}, "nic_bytes_per_s"),
        ({"num_slot": 3}, "num_slot"),
        ({"store_url": "memory://x"}, "store_url"),
        ({"store_url": "ftp://x"}, "ftp"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_setting_is_named_in_one_line(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names) as raised:
        read_settings({KEY: GOOD | changes})
    assert "\n" not in str(raised.value)


def test_settings_that_may_be_given_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "vllm.md").read_text()
    optional = [field.name for field in msgspec.structs.fields(ConnectorSettings) if not field.required]
    assert "layers_ahead" in optional
    assert [name for name in optional if f"`{name}`" not in page] == []


def test_settings_that_are_missing_are_an_error() -> None:
    with pytest.raises(ConfigError, match="kv_connector_extra_config"):
        read_settings({})
    with pytest.raises(ConfigError, match="num_slots"):
        read_settings({KEY: {name: value for name, value in GOOD.items() if name != "num_slots"}})
