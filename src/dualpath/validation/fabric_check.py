"""Runs a check of the compute network: all nodes of a testbed from here, or this node's part on a real cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from dualpath.cluster.setup import Progress
from dualpath.cluster.signals import held_back
from dualpath.core.errors import ConfigError, DualPathError
from dualpath.testbed import Testbed, TestbedSpec
from dualpath.testbed.classes import set_classes
from dualpath.testbed.signals import undisturbed
from dualpath.testbed.spec import COMPUTE_NETWORK
from dualpath.traffic.fabric import Fabric, FabricNode, engine_environment
from dualpath.traffic.fabric_check.plan import CheckPlan, Load
from dualpath.traffic.fabric_check.verdict import CheckResult
from dualpath.validation.fabric_nodes import read_fabric

_PORT = 29400  # of rank 0, inside its namespace: a second check at the same time is refused by it
_RANK_MODULE = "dualpath.validation.fabric_rank"
_START_S, _SLOWEST = 60.0, 20  # imports; and how much longer than planned the collectives of a phase may take
_TERM_S = 3.0


def testbed_hosts(spec: TestbedSpec) -> list[str]:
    """The ranks, in order. Raises ConfigError where nothing can be measured between them."""
    hosts = [node for node in spec.nodes if spec.has_compute(node)]
    if len(hosts) < 2:
        raise ConfigError(f"testbed {spec.name!r} has {len(hosts)} engine hosts; a check needs two or more")
    return hosts


def check_testbed(testbed: Testbed, plan: CheckPlan, progress: Progress) -> CheckResult:
    """Measure between all engine hosts. Whatever happens, every process ends and the classes are as they were."""
    if plan.contrast and not testbed.spec.classes:
        raise ConfigError("--contrast: this testbed has no classes to switch off; up it with --classes on")
    if testbed.spec.classes:
        with held_back():  # half of them would stay
            set_classes(testbed, on=True)  # a check that was killed may have left them off
    try:
        return asyncio.run(_TestbedCheck(testbed, plan, progress).run())
    finally:
        if plan.contrast:
            with undisturbed():
                set_classes(testbed, on=True)


class _TestbedCheck:
    def __init__(self, testbed: Testbed, plan: CheckPlan, progress: Progress) -> None:
        self._testbed, self._plan, self._progress = testbed, plan, progress
        self._hosts = testbed_hosts(testbed.spec)
        self._phase_s = plan.phase_s * _SLOWEST + plan.deadline_s

    async def run(self) -> CheckResult:
        async with contextlib.AsyncExitStack() as stack:
            ranks = [await stack.enter_async_context(self._rank(host)) for host in self._hosts]
            results = [asyncio.create_task(self._follow(*each)) for each in zip(self._hosts, ranks, strict=True)]
            try:
                done, _ = await asyncio.wait(results, return_when=asyncio.FIRST_EXCEPTION)
                outcomes = [task.result() for task in done]  # raises what any of them raised
                return outcomes[0]
            finally:
                for task in results:
                    task.cancel()
                await asyncio.gather(*results, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _rank(self, host: str) -> AsyncIterator[Process]:
        words = self._testbed.command_on(host, [sys.executable, "-m", _RANK_MODULE])
        quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # it warns that hosts have no names, which they have not
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**quiet, **os.environ, **self._testbed.spec.environment(host)},
            start_new_session=True,  # Ctrl-C comes to us, and we end them
        )
        try:
            yield process
        finally:
            await _end(process)

    async def _follow(self, host: str, process: Process) -> CheckResult:
        """Answer the rank's questions until it has a result."""
        assert process.stdin is not None
        assert process.stdout is not None
        master = str(self._testbed.spec.address(COMPUTE_NETWORK, self._hosts[0]))
        _send(process, {"plan": self._plan.to_json(), "rank": self._hosts.index(host), "master": [master, _PORT]})
        wait_s = _START_S + self._plan.deadline_s + self._phase_s * (1 if host == self._hosts[0] else self._num_phases)
        while True:
            try:
                line = await asyncio.wait_for(process.stdout.readline(), wait_s)
            except TimeoutError:
                raise DualPathError(f"{host} did not answer within {wait_s:g} s") from None
            if not line:
                raise DualPathError(f"the check's process on {host} ended with exit code {await process.wait()}")
            message = msgspec.json.decode(line)
            if "error" in message:
                raise DualPathError(f"{host}: {message['error']}")
            if "result" in message:
                await asyncio.wait_for(process.wait(), self._plan.deadline_s)
                return msgspec.convert(message["result"], CheckResult)
            self._before_phase(message["phase"], Load(message["load"]))
            _send(process, "go")

    @property
    def _num_phases(self) -> int:
        return len(self._plan.phases)

    def _before_phase(self, number: int, load: Load) -> None:
        self._progress(f"phase {number + 1} of {self._num_phases}: {load.value}")
        if self._plan.contrast:
            set_classes(self._testbed, on=load is not Load.UNCLASSED_KV)


def _send(process: Process, message: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(message) + b"\n")


async def _end(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)  # asyncio's own would reap it before its watcher does
        try:
            await asyncio.wait_for(process.wait(), _TERM_S)
        except TimeoutError:
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
    process._transport.close()  # type: ignore[attr-defined]  # else its pipes may outlive the loop


def cluster_nodes(file: Path, fabric: Fabric) -> list[FabricNode]:
    """The ranks of a real cluster: nodes with compute NICs, as the file lists them."""
    nodes = [node for node in read_fabric(file, fabric).nodes if node.compute_nics]
    if len(nodes) < 2:
        raise ConfigError(f"{file}: {len(nodes)} nodes have compute_nics; a check needs two or more")
    return nodes


def set_environment(fabric: Fabric, node: FabricNode) -> None:
    """What ``fabric render`` writes for the node's first engine; what the user has set stays."""
    for name, value in engine_environment(fabric, {0: node.compute_nics[0]}).items():
        os.environ.setdefault(name, value)


def report(result: CheckResult, names: Sequence[str]) -> str:
    """For people: a line for each phase, then the verdict."""
    head = f"{'load':14}{'p50 ms':>8}{'p99 ms':>8}{'collective':>12}  " + "  ".join(
        f"{name + ' KV':>12}" for name in names
    )
    lines = [f"{head}  {'KV share':>8}    (Mbit/s; sent, each direction)"]
    for phase in result.phases:
        kv = "  ".join(f"{_mbps(rate):12.0f}" for rate in phase.kv_bytes_per_s)
        share = "" if phase.kv_share is None else f"{phase.kv_share:8.0%}"
        lines.append(
            f"{phase.load.value:14}{phase.p50_s * 1e3:8.2f}{phase.p99_s * 1e3:8.2f}"
            f"{_mbps(phase.collective_bytes_per_s):12.0f}  {kv}  {share}"
        )
    lines.append("")
    if result.plan.contrast:
        lines.append(f"without classes: p99 {result.p99_ratio(Load.UNCLASSED_KV):.2f} x idle")
    lines.append(
        f"collectives' p99 beside KV: {result.p99_ratio():.2f} x idle (median of phases; at most 1.15): "
        f"isolation {'holds' if result.is_isolated else 'DOES NOT HOLD'}"
    )
    lines.append(
        f"KV moves {result.kv_share:.0%} of what the collectives leave of a NIC (at least 80 %): "
        f"{'as it should' if result.is_kv_served else 'TOO LITTLE'}"
    )
    if not result.has_real_time:
        lines.append("note: no real-time priority for the collectives here (needs root): a busy CPU shows in the tail")
    return "\n".join(lines)


def _mbps(bytes_per_s: float) -> float:
    return bytes_per_s * 8 / 1e6
