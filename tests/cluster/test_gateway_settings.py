"""Every setting of [gateway] reaches what it is about."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dualpath.config import GatewayConfig
from dualpath.config.fields import entries
from dualpath.config.gateway import REASONING_PARSERS, TOOL_CALL_PARSERS
from dualpath.gateway.defaults import SamplingDefaults
from dualpath.gateway.settings import ConnectionLimits, GatewaySettings
from dualpath.gateway.text import answer
from dualpath.gateway.text.calls.grammars import GRAMMARS
from dualpath.serving.serve import gateway_settings

OF_THE_SERVER = {"host", "port", "drain_s"}  # tests.cli.test_cli_serve
OTHERS = {  # than the default
    "api_keys": ("a",),
    "admin_keys": ("b",),
    "allowed_origins": ("https://a.example",),
    "share_cache": True,
    "tool_call_parser": "mistral",
    "reasoning_parser": "none",
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


def test_the_parsers_are_those_that_there_are() -> None:
    calls = {answer.chosen_format("", name, "none").calls for name in TOOL_CALL_PARSERS}
    assert calls == {*GRAMMARS, answer.HARMONY, None}
    reasoning = {answer.chosen_format("", "none", name).reasoning for name in REASONING_PARSERS}
    assert reasoning == {*answer._TAGS, answer.HARMONY_REASONING, None}


def test_defaults_are_written_down_once_each_and_agree() -> None:
    config, settings = GatewayConfig(), flat(GatewaySettings())
    for field in dataclasses.fields(ConnectionLimits):
        assert getattr(config, field.name) == settings[field.name]
    assert gateway_settings(config, SamplingDefaults()) == GatewaySettings()
