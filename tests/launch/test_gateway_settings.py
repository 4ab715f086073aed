"""Every setting of [gateway] reaches what it is about."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dualpath.config import GatewayConfig
from dualpath.config.fields import entries
from dualpath.gateway.defaults import SamplingDefaults
from dualpath.gateway.settings import ConnectionLimits, GatewaySettings
from dualpath.launch.serve import gateway_settings

OF_THE_SERVER = {"host", "port", "drain_s"}  # tests.launch.test_cli_serve
OTHERS = {  # than the default
    "api_keys": ("a",),
    "admin_keys": ("b",),
    "share_cache": True,
    "max_body_bytes": 5000,
    "body_memory_bytes": 1 << 21,
    "max_connections": 7,
}


def flat(settings: GatewaySettings) -> dict[str, Any]:
    fields = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return fields | dataclasses.asdict(fields.pop("connections"))


@pytest.mark.parametrize("name", [e.name for e in entries(GatewayConfig) if e.name not in OF_THE_SERVER])
def test_a_setting_changes_what_it_names_and_nothing_else(name: str) -> None:
    value = OTHERS.get(name, 0.5)
    before = flat(gateway_settings(GatewayConfig(), SamplingDefaults()))
    after = flat(gateway_settings(GatewayConfig(**{name: value}), SamplingDefaults()))
    assert {field for field in after if after[field] != before[field]} == {name}
    assert after[name] == value


def test_defaults_are_written_down_once_each_and_agree() -> None:
    config, settings = GatewayConfig(), flat(GatewaySettings())
    for field in dataclasses.fields(ConnectionLimits):
        assert getattr(config, field.name) == settings[field.name]
    assert gateway_settings(config, SamplingDefaults()) == GatewaySettings()
