"""``[memory] verify``: what it comes to where, and that all nodes must agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dualpath.cluster.engines import EngineBuilder
from dualpath.cluster.remote import _agreed
from dualpath.cluster.sizes import Sizes
from dualpath.config import MemoryConfig, ModelConfig, ServeConfig, StoreConfig
from dualpath.core.errors import ConfigError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import EngineId, NodeId, PeerId
from dualpath.core.keys import Namespace
from dualpath.core.plan import Role
from dualpath.core.runtime import SystemRuntime
from dualpath.engine.batch import no_quota
from dualpath.protocol.api import EngineInfo
from dualpath.protocol.wire import NodeReport
from dualpath.scheduler.policy.systems import system_policy
from dualpath.store.memory import MemoryStore

GEOMETRY = KvGeometry(2, 4, 8)


@pytest.mark.parametrize(
    ("verify", "device", "system", "is_end_to_end"),
    [
        ("auto", "cpu", None, True),
        ("auto", "cuda", None, False),
        ("all", "cuda", None, True),
        ("storage", "cpu", None, False),
        ("auto", "cpu", "basic", True),
        ("all", "cpu", "oracle", False),
    ],
)
def test_what_it_comes_to(verify: str, device: str, system: str | None, is_end_to_end: bool) -> None:
    namespace = Namespace("model", "float32", GEOMETRY, device)
    builder = EngineBuilder(
        config=ServeConfig(
            model=ModelConfig(dir=Path("/m")), store=StoreConfig(url="memory://v"), memory=MemoryConfig(verify=verify)
        ),
        sizes=Sizes(8, 2, 2, 8, 16),
        namespace=namespace,
        store=MemoryStore("memory://v", namespace.digest, GEOMETRY),
        runtime=SystemRuntime(),
        trace=None,
        system=system_policy(system, "split"),
        quota=no_quota,
    )
    assert builder.verifies is is_end_to_end


def test_nodes_that_differ_are_refused() -> None:
    info = EngineInfo(EngineId("e"), PeerId("e.1"), NodeId("n"), Role.DECODE, 8, 8, b"", verifies=True)
    report = NodeReport(Namespace("model", "float32", GEOMETRY, "cpu"), "model", 8, (info,), b"", "host", 1)
    other = NodeReport(report.namespace, "model", 8, (replace(info, verifies=False),), b"", "host", 2)
    assert _agreed({NodeId("a"): report, NodeId("b"): report}) is report
    with pytest.raises(ConfigError, match=r"\[memory\] verify: b and a differ"):
        _agreed({NodeId("a"): report, NodeId("b"): other})
