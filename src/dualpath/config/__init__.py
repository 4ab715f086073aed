"""Frozen dataclasses that hold every setting with its unit, default and help; TOML and the CLI are generated from them.

Precedence, weakest first: the default in the dataclass, the file given with ``--config``, the command line's flags.
Imports ``core.errors`` only. Who builds clusters reads these and hands every other package its own small config.
"""

from dualpath.config.gateway import GatewayConfig
from dualpath.config.load import load_config
from dualpath.config.nodes import NodeConfig, RayConfig, bytes_per_s
from dualpath.config.serve import (
    ClusterConfig,
    DeadlineConfig,
    MemoryConfig,
    ModelConfig,
    ObserveConfig,
    SchedulerConfig,
    ServeConfig,
    StoreConfig,
)
from dualpath.config.vllm import VllmConfig

__all__ = [
    "ClusterConfig",
    "DeadlineConfig",
    "GatewayConfig",
    "MemoryConfig",
    "ModelConfig",
    "NodeConfig",
    "ObserveConfig",
    "RayConfig",
    "SchedulerConfig",
    "ServeConfig",
    "StoreConfig",
    "VllmConfig",
    "bytes_per_s",
    "load_config",
]
