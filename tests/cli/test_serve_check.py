"""What is found out before a model is loaded: whether the gateway can listen, where it is to run here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dualpath.config import ModelConfig, NodeConfig, RayConfig, ServeConfig, StoreConfig
from dualpath.core.errors import ConfigError
from dualpath.serving.serve import check


@pytest.mark.parametrize(
    ("address", "roles", "is_here"),
    [
        (None, (), True),
        (None, ("gateway", "prefill", "decode"), True),
        ("10.0.0.1:6379", ("prefill", "decode"), True),
        ("10.0.0.1:6379", ("gateway", "prefill", "decode"), False),
    ],
)
def test_a_gateway_on_another_host_is_not_tried_here(
    address: str | None, roles: tuple[str, ...], is_here: bool, tmp_path: Path
) -> None:
    config = ServeConfig(
        model=ModelConfig(dir=tmp_path),
        store=StoreConfig(url="memory://x"),
        nodes=tuple(NodeConfig(name=role, role=role) for role in roles),
        ray=RayConfig(address=address),
    )
    config = replace(config, gateway=replace(config.gateway, host="192.0.2.77"))  # nobody's address
    if is_here:
        with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.77"):
            check(config)
    else:
        check(config)
