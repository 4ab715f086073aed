"""Device memory is shared out by what each engine needs, and a context that is cut says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualpath.cluster.device_claims import claim_devices
from dualpath.cluster.foundation import check_allocator
from dualpath.cluster.places import Place
from dualpath.cluster.sizes import SCRATCH_BYTES, DeviceRoom, derive_sizes
from dualpath.config import MemoryConfig
from dualpath.core.errors import ConfigError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import EngineId, NodeId
from dualpath.core.plan import Role

EIGHT_B = KvGeometry(num_layers=32, block_tokens=64, bytes_per_token_layer=4096)
GIB = 1024**3
STAGING = MemoryConfig(prefill_staging_bytes=16 * GIB, decode_staging_bytes=16 * GIB)


def test_a_prefill_engine_takes_its_workspaces_and_leaves_the_rest() -> None:
    room = DeviceRoom(60 * GIB, num_prefill=1, num_decode=1)
    sizes = derive_sizes(STAGING, EIGHT_B, 131072, [room], workspace_layers=4)
    workspace_bytes = sizes.workspace_tokens * 4096 * 4
    assert workspace_bytes == GIB // 2
    assert sizes.decode_kv_tokens == (60 * GIB - GIB // 2 - 2 * SCRATCH_BYTES) // EIGHT_B.bytes_per_token
    assert sizes.decode_kv_tokens * EIGHT_B.bytes_per_token > 0.9 * 60 * GIB


def test_the_fullest_device_decides_and_one_without_decode_engines_does_not() -> None:
    rooms = [DeviceRoom(60 * GIB, 0, 1), DeviceRoom(30 * GIB, 0, 1), DeviceRoom(2 * GIB, 1, 0)]
    sizes = derive_sizes(STAGING, EIGHT_B, 131072, rooms)
    assert sizes.decode_kv_tokens == (30 * GIB - SCRATCH_BYTES) // EIGHT_B.bytes_per_token


def test_a_device_without_room_for_a_context_is_refused() -> None:
    with pytest.raises(ConfigError, match="device-memory-fraction"):
        derive_sizes(STAGING, EIGHT_B, 131072, [DeviceRoom(3 * GIB, 1, 1)])


def test_a_context_that_staging_cuts_says_so() -> None:
    sizes = derive_sizes(MemoryConfig(), EIGHT_B, 131072, [DeviceRoom(60 * GIB, 1, 1)])
    assert sizes.max_context_tokens == 8192
    assert sizes.cut == (
        "contexts are cut to 8192 tokens by prefill-staging-bytes; 4294967296 bytes would hold the longest"
    )
    assert derive_sizes(STAGING, EIGHT_B, 131072).cut is None


def test_node_processes_of_a_host_take_different_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of one process exclude each other too: they are of open files."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert claim_devices(1, 3, tmp_path) == [0]
    assert claim_devices(2, 3, tmp_path) == [1, 2]
    assert claim_devices(2, 3, tmp_path) == [0, 1], "all are taken: they are shared"


def test_devices_are_called_what_the_host_calls_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert claim_devices(1, 2, tmp_path) == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert claim_devices(1, 2, tmp_path) == [0], "the host's 0 is free"
    assert claim_devices(1, 2, tmp_path) == [0], "and now nothing is"


def test_memory_that_grows_in_place_cannot_be_registered() -> None:
    places = [Place(EngineId("decode0"), NodeId("decode-node0"), Role.DECODE, "cuda:0")]
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64,expandable_segments:True"}
    with pytest.raises(ConfigError, match="expandable_segments"):
        check_allocator(places, environment)
    check_allocator(places, {})
