"""Real vLLM servers on a testbed's hosts, one each: the same tokens by every read path, over the hosts' own NICs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.testbed.rollouts import leaving_nothing, rollout
from tests.vllm.servers import vllm_python

NAME = f"dpvllm{os.getpid()}"
ROUNDS = [{"append_tokens": count, "generate_tokens": 8} for count in (700, 70, 70)]


@pytest.fixture
def _leaves_nothing() -> Iterator[None]:
    with leaving_nothing(NAME):
        yield


@pytest.mark.vllm
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("_leaves_nothing")
def test_systems_on_vllm_servers_give_the_same_tokens(vllm_model: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps({"id": name, "rounds": ROUNDS}) + "\n" for name in ("a", "b")))
    flags = f"--engine vllm --vllm-python {vllm_python()} --vllm-arg=--enforce-eager --dtype float32 --name {NAME}"
    flags += (
        f" --vllm-arg=--no-enable-prefix-caching --trace {trace} --agents 2 --block-tokens 128 --systems basic,split"
    )
    flags += f" --storage-nic-mbps 100 --threads-per-engine 1 --vllm-heartbeat-s 60 --vllm-logs {tmp_path}/logs"
    systems = rollout("testbed", vllm_model, tmp_path / "out.json", flags)["systems"]
    basic, split = systems["basic"], systems["split"]
    assert basic["tokens_sha256"] == split["tokens_sha256"]
    assert basic["hit_tokens"] == split["hit_tokens"] > 0
    assert basic["storage_read_bytes"]["de0"] == 0 < split["storage_read_bytes"]["de0"]
    for one in systems.values():
        assert (one["recomputed_blocks"], one["retries"]) == (0, 0)
        for nic in one["nics"]:
            if (nic["host"], nic["nic"]) in (("pe0", "s0"), ("de0", "s0")):
                read = one["storage_read_bytes"][nic["host"]]
                assert nic["program_rx_bytes"] == read <= nic["rx_bytes"]
    pulled = split["kv_transfer_bytes"]["decode_to_prefill"]
    (nic,) = [nic for nic in split["nics"] if (nic["host"], nic["nic"]) == ("pe0", "kv0")]
    assert nic["rx_bytes"] >= pulled > 0
