"""``dualpath fabric check``: is model execution kept apart from KV on the links that there are?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dualpath.cli.command import add_command
from dualpath.config.fields import Address, Options, setting
from dualpath.core.errors import ConfigError

if TYPE_CHECKING:
    from dualpath.traffic.fabric_check.plan import CheckPlan
    from dualpath.traffic.fabric_check.verdict import CheckResult

T = TypeVar("T")
FABRICS = ("infiniband", "roce", "ethernet")


class _Options(Options):
    """Measure, between all nodes, how long a collective of model execution takes with the compute network idle and with
    KV moving beside it, in phases by turns. Isolation holds where the p99 beside KV is at most 1.15 times the idle one,
    and classes are set up well where KV still moves 80 % of what the collectives leave of a NIC. Exit code 1 where not
    both.

    In a testbed (dualpath testbed up), from outside of it:
      dualpath fabric check --testbed
    On a real cluster, the same command on every node but for --rank, its place among the nodes of the file that have
    compute_nics; rank 0 listens at --master, an address of its compute NIC, and every rank prints the result:
      dualpath fabric check --config cluster.toml --fabric roce --rank 0 --master 10.2.0.1:29400
    The environment of a rank is what fabric render writes for the first engine of its node; what is set already stays.
    Best run as root, on nodes that serve nothing meanwhile: collectives then run with real-time priority.
    """

    testbed: str | None = setting(
        None, alone="dualpath", metavar="NAME", help="all engine hosts of this testbed (dualpath)"
    )
    config: Path | None = setting(None, metavar="FILE", help="this node's part on a cluster: TOML with [[nodes]]")
    fabric: str | None = setting(None, choices=FABRICS, help="with --config: its network")
    rank: int | None = setting(None, help="with --config: this node, from 0")
    world: int | None = setting(None, none_means="all", help="with --config: how many nodes take part")
    master: Address | None = setting(None, help="with --config: where rank 0 listens")
    contrast: bool = setting(False, help="with --testbed: phases with classes switched off, too, by turns")
    rounds: int = setting(3, help="phases of each kind")
    phase_s: float = setting(5.0, metavar="S", help="length of a phase")
    message_kib: int = setting(256, help="what a rank sends in one collective")
    period_ms: float = setting(5.0, metavar="MS", help="one collective each")
    deadline_s: float = setting(30.0, metavar="S", help="longest wait for another node")
    json: bool = setting(False, help="for programs")


def add(actions: Any) -> None:
    text = "measure whether KV leaves model execution alone"
    add_command(actions, "check", text, _check, _Options)


def _check(options: _Options) -> int:
    if (options.testbed is None) == (options.config is None):
        raise ConfigError("--testbed or --config: give one of them")
    result, names = _in_testbed(options) if options.config is None else _on_this_node(options, options.config)
    if options.json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        from dualpath.validation.fabric_check import report

        print(report(result, names))
    return 0 if result.holds else 1


def _in_testbed(options: _Options) -> tuple[CheckResult, list[str]]:
    from dualpath.cluster.signals import interrupted_by_signals
    from dualpath.testbed import Testbed
    from dualpath.validation.fabric_check import check_testbed, testbed_hosts

    for flag in ("fabric", "rank", "world", "master"):
        if getattr(options, flag) is not None:
            raise ConfigError(f"--{flag}: is for --config; a testbed knows it")
    assert options.testbed is not None
    testbed = Testbed.find(options.testbed)
    hosts = testbed_hosts(testbed.spec)
    plan = _plan(options, len(hosts), testbed.spec.compute_nic_mbps)
    with interrupted_by_signals():
        return check_testbed(testbed, plan, _progress), hosts


def _on_this_node(options: _Options, config: Path) -> tuple[CheckResult, list[str]]:
    from dualpath.traffic.fabric import Fabric
    from dualpath.validation.fabric_check import cluster_nodes, set_environment

    fabric = Fabric(_needed("fabric", options.fabric))
    rank, master = _needed("rank", options.rank), _needed("master", options.master)
    if options.contrast:
        raise ConfigError("--contrast: is for --testbed; on a cluster run the check again with the classes taken away")
    nodes = cluster_nodes(config, fabric)
    world = len(nodes) if options.world is None else options.world
    if not 2 <= world <= len(nodes):
        raise ConfigError(f"--world: must be 2 to {len(nodes)}, the nodes with compute_nics, not {world}")
    if not 0 <= rank < world:
        raise ConfigError(f"--rank: must be 0 to {world - 1}, not {rank}")
    nodes = nodes[:world]
    plan = _plan(options, world, min(node.compute_nics[0].rate_mbps for node in nodes))
    set_environment(fabric, nodes[rank])

    from dualpath.traffic.fabric_check.rank import run_rank

    result = run_rank(plan, rank, master, lambda number, load: _progress(f"phase {number + 1}: {load.value}"))
    return result, [node.name for node in nodes]


def _plan(options: _Options, world: int, nic_mbps: float) -> CheckPlan:
    from dualpath.traffic.fabric_check.plan import KIB, CheckPlan

    return CheckPlan(
        world=world,
        nic_bytes_per_s=nic_mbps * 1e6 / 8,
        message_bytes=options.message_kib * KIB,
        period_s=options.period_ms / 1e3,
        phase_s=options.phase_s,
        num_rounds=options.rounds,
        contrast=options.contrast,
        deadline_s=options.deadline_s,
    )


def _needed(flag: str, value: T | None) -> T:
    if value is None:
        raise ConfigError(f"--{flag}: is required with --config")
    return value


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
