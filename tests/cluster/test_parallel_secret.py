"""A prefill node that waits for processes from elsewhere starts with a secret only, and says so before it loads."""

from __future__ import annotations

import pytest

from dualpath.cluster.places import Place, check_parallel_places
from dualpath.config import ClusterConfig
from dualpath.core.errors import ConfigError
from dualpath.core.ids import EngineId, NodeId
from dualpath.core.plan import Role

PREFILL = Place(EngineId("p0"), NodeId("n0"), Role.PREFILL, "cpu")
DECODE = Place(EngineId("d0"), NodeId("n0"), Role.DECODE, "cpu")
FROM_ELSEWHERE = ClusterConfig(tensor_parallel=2, tensor_parallel_listen="10.2.0.2:29500")


@pytest.fixture(autouse=True)
def no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DUALPATH_SECRET", "DUALPATH_SECRET_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_secret_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel_listen: .*DUALPATH_SECRET"):
        check_parallel_places(FROM_ELSEWHERE, [PREFILL])


def test_with_a_secret_or_without_others_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    check_parallel_places(FROM_ELSEWHERE, [DECODE])
    check_parallel_places(ClusterConfig(tensor_parallel=2), [PREFILL])
    monkeypatch.setenv("DUALPATH_SECRET", "0123456789abcdef")
    check_parallel_places(FROM_ELSEWHERE, [PREFILL])
