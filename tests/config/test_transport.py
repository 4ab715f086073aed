"""Plain copies serve one process, over files and memory; all else needs NIXL and says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dualpath.config import ClusterConfig, MemoryConfig, ModelConfig, NodeConfig, ServeConfig, StoreConfig
from dualpath.core.errors import ConfigError

LOCAL = {
    "model": ModelConfig(dir=Path("model")),
    "store": StoreConfig(url="file:///tmp/blocks"),
    "cluster": ClusterConfig(transport="local"),
}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"store": StoreConfig(url="s3://bucket/x")}, "needs nixl"),
        ({"store": StoreConfig(url="file:///tmp/x?engine=3fs")}, "needs nixl"),
        ({"memory": MemoryConfig(copies="nic")}, "has no compute NIC"),
        ({"nodes": (NodeConfig(name="p", role="prefill"), NodeConfig(name="d", role="decode"))}, "within one process"),
    ],
    ids=["s3", "3fs", "nic", "nodes"],
)
def test_what_local_copies_cannot_do(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServeConfig(**LOCAL | more)


def test_files_and_memory_can_be_had_without_nixl() -> None:
    config = ServeConfig(**LOCAL)
    assert replace(config, store=StoreConfig(url="memory://x")).cluster.transport == "local"
