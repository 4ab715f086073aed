"""A comparison on real links: the tokens of one process, the kernel's counters, and nothing left at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scheduler.fixtures import BLOCK
from tests.testbed.rollouts import leaving_nothing, rollout
from tests.vllm.fake_python import fake_python

from dualpath.testbed.system import processes_in

NAME = f"dproll{os.getpid()}"
WORKLOAD = "--trace synth:64K --scale 0.03 --agents 3 --rounds 3 --seed 1 --block-tokens 16 --threads-per-engine 1"
PATIENCE_S = 60.0


@pytest.fixture
def _leaves_nothing() -> Iterator[None]:
    with leaving_nothing(NAME):
        yield


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("_leaves_nothing")
def test_rollout(tiny_model_dir: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model_dir, page = tiny_model_dir("llama"), tmp_path / "page.html"
    here = rollout("bench", model_dir, tmp_path / "here.json", f"{WORKLOAD} --systems split")["systems"]["split"]
    flags = (
        f"{WORKLOAD} --systems basic,split --storage-nic-mbps 100 --compute-nic-mbps 400 --name {NAME} --html {page}"
    )
    report = rollout("testbed", model_dir, tmp_path / "there.json", flags)
    assert report["settings"]["testbed"] == {"compute_nic_mbps": 400.0, "classes": "on", "name": NAME}
    assert "peak" in capfd.readouterr().out
    assert "Network interfaces" in page.read_text()
    for system in ("basic", "split"):
        there = report["systems"][system]
        assert set(here) < set(there)
        assert there["tokens_sha256"] == here["tokens_sha256"]
        assert (there["recomputed_blocks"], there["retries"]) == (0, 0)
        assert set(there["cpu_s"]) == {"switch", "storage", "pe0", "de0"}
        assert min(there["cpu_s"].values()) > 0
        check_counters({(nic["host"], nic["nic"]): nic for nic in there["nics"]}, there)
    assert report["systems"]["basic"]["storage_read_bytes"]["de0"] == 0


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("_leaves_nothing")
def test_vllm_servers_are_on_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes: they answer, and move nothing."""
    python = fake_python(tmp_path, monkeypatch)
    flags = f"{WORKLOAD} --scale 0.002 --block-tokens {BLOCK} --systems split --storage-nic-mbps 100 --name {NAME}"
    flags += f" --engine vllm --vllm-python {python} --vllm-logs {tmp_path}/logs"
    (split,) = rollout("testbed", tmp_path, tmp_path / "there.json", flags)["systems"].values()
    assert set(split["storage_read_bytes"]) == {"pe0", "de0"}
    assert set(split["cpu_s"]) == {"switch", "storage", "pe0", "de0"}
    assert split["requests"] == 9
    assert sorted(path.name for path in (tmp_path / "logs").glob("*.log")) == ["de0.log", "pe0.log"]


def check_counters(nics: dict[tuple[str, str], dict[str, Any]], run: dict[str, Any]) -> None:
    """The program's count is what it reports elsewhere, and the kernel has seen it pass, with headers on top."""
    assert set(nics) == {("storage", "s0"), *((host, nic) for host in ("pe0", "de0") for nic in ("s0", "c0", "kv0"))}
    for host in ("pe0", "de0"):
        assert nics[host, "s0"]["program_rx_bytes"] == run["storage_read_bytes"][host]
    to_decode = run["kv_transfer_bytes"]["prefill_to_decode"]
    assert nics["pe0", "kv0"]["program_tx_bytes"] == nics["de0", "kv0"]["program_rx_bytes"] == to_decode > 0
    assert to_decode > 1_000_000  # below, what is no payload shows
    assert to_decode <= nics["pe0", "kv0"]["tx_bytes"] < 1.05 * to_decode
    for nic in nics.values():
        for way in ("rx", "tx"):
            program = nic[f"program_{way}_bytes"] or 0
            payload = nic[f"{way}_bytes"] - nic[f"{way}_header_bytes"]
            assert payload >= program
            assert not program or nic[f"{way}_excess"] == pytest.approx(payload / program - 1, abs=1e-4)
            if program > 1_000_000:
                assert payload < 1.05 * program


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.usefixtures("_leaves_nothing")
def test_ctrl_c_leaves_nothing(tiny_model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    scratch = Path(tempfile.mkdtemp(dir=tmp_path))
    words = ["testbed", "rollout", "--model", str(tiny_model_dir("llama")), *WORKLOAD.split(), "--name", NAME]
    command = [sys.executable, "-m", "dualpath", *words]
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(scratch)}, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(processes_in({f"{NAME}-pe0", f"{NAME}-de0"})) == 2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, said
    assert not list(scratch.iterdir())


def wait_for(is_true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
