"""A check on real links: what it says follows from what the kernel did, and nothing is left, whatever ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from tests.testbed.classes import sent_by_class

from dualpath.cluster.signals import interrupted_by_signals
from dualpath.core.errors import ConfigError
from dualpath.testbed import Testbed, TestbedSpec
from dualpath.testbed.system import missing_kernel_features, processes_in
from dualpath.traffic.fabric_check.plan import CheckPlan, Load
from dualpath.traffic.fabric_check.verdict import CheckResult
from dualpath.validation import fabric_check
from dualpath.validation.fabric_check import check_testbed

pytestmark = pytest.mark.root

NAME = f"dpcheck{os.getpid()}"
SPEC = TestbedSpec(nodes=("storage", "pe0", "de0"), storage_nic_mbps=200, compute_nic_mbps=800, name=NAME)
PLAN = CheckPlan(world=2, nic_bytes_per_s=100e6, phase_s=1.0, num_rounds=1)
PATIENCE_S = 60.0


@pytest.fixture
def testbed() -> Iterator[Testbed]:
    if lacks := missing_kernel_features():
        pytest.skip(f"needs a kernel with {', '.join(lacks)}")
    try:
        yield Testbed.up(SPEC)
    finally:
        Testbed.down(NAME)


def filters(testbed: Testbed) -> str:
    words = ["tc", "-n", SPEC.namespace("pe0"), "filter", "show", "dev", "c0"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def start(*flags: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "dualpath", "fabric", "check", "--testbed", NAME, *flags]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_kv_runs_in_its_class_and_without_classes_in_the_models(testbed: Testbed) -> None:
    before, kv_bytes = filters(testbed), []

    def at_phase(_: str) -> None:
        kv_bytes.append(sent_by_class(SPEC, "pe0")[1])

    plan = CheckPlan(**{**PLAN.to_json(), "contrast": True})
    result = check_testbed(testbed, plan, at_phase)
    kv_bytes.append(sent_by_class(SPEC, "pe0")[1])
    idle, classed, unclassed = result.phases
    assert [phase.load for phase in result.phases] == list(Load)
    in_idle, in_classed, in_unclassed = (kv_bytes[i + 1] - kv_bytes[i] for i in range(3))
    moved = classed.kv_bytes_per_s[0] * classed.duration_s
    assert moved > 1e6
    assert in_classed > moved  # the kernel saw all of it, and what moved before and after the window
    assert max(in_idle, in_unclassed) < moved / 10
    assert max(idle.kv_bytes_per_s) == 0
    assert min(unclassed.kv_bytes_per_s) > 1e6
    assert unclassed.p50_s > idle.p50_s  # behind a queue that is never empty
    assert filters(testbed) == before != ""
    assert processes_in(SPEC.namespaces) == {}


def test_the_command_prints_a_verdict_that_its_exit_code_repeats(testbed: Testbed) -> None:
    process = start("--phase-s", "1", "--rounds", "1", "--json")
    out, progress = process.communicate(timeout=PATIENCE_S)
    told = json.loads(out)
    assert [phase["load"] for phase in told["phases"]] == ["idle", "kv"]
    assert process.returncode == (0 if told["holds"] else 1)
    assert told["holds"] == (told["p99_ratio"] <= 1.15 and told["kv_share"] >= 0.8)
    assert told["real_time_priority"] is True
    assert progress == "phase 1 of 2: idle\nphase 2 of 2: kv\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_no_process_and_the_classes_on(number: signal.Signals, testbed: Testbed) -> None:
    before = filters(testbed)
    process = start("--phase-s", "1", "--rounds", "9", "--contrast")
    assert process.stderr is not None
    while "unclassed" not in (line := process.stderr.readline()):  # it takes the classes away next
        assert line
    wait_until(lambda: filters(testbed) != before)
    process.send_signal(number)
    _, error = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, error
    assert error.endswith("dualpath: error: interrupted\n")
    wait_until(lambda: not processes_in(SPEC.namespaces))
    assert filters(testbed) == before


def test_an_interruption_waits_for_classes_that_are_being_set(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def set_classes(_: Testbed, on: bool) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(on)

    monkeypatch.setattr(fabric_check, "set_classes", set_classes)
    with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
        check(SPEC)
    assert done == [True]


def test_a_rank_that_dies_ends_the_check(testbed: Testbed) -> None:
    process = start("--phase-s", "2", "--rounds", "9")
    assert process.stderr is not None
    assert process.stderr.readline() == "phase 1 of 18: idle\n"
    victims = [pid for pid, namespace in processes_in(SPEC.namespaces).items() if namespace == SPEC.namespace("de0")]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    _, error = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "dualpath: error: " in error
    wait_until(lambda: not processes_in(SPEC.namespaces))


def test_what_cannot_be_measured_is_refused(testbed: Testbed) -> None:
    alone = TestbedSpec(**{**SPEC.to_json(), "nodes": ("storage", "pe0")})
    with pytest.raises(ConfigError, match="has 1 engine hosts; a check needs two or more"):
        check(alone)
    off = TestbedSpec(**{**SPEC.to_json(), "nodes": SPEC.nodes, "classes": False})
    with pytest.raises(ConfigError, match="--contrast: this testbed has no classes"):
        check(off, contrast=True)


def check(spec: TestbedSpec, contrast: bool = False) -> CheckResult:
    return check_testbed(Testbed(spec), CheckPlan(**{**PLAN.to_json(), "contrast": contrast}), lambda _: None)
