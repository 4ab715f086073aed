"""``dualpath fabric check``: is model execution kept apart from KV on the links that there are?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualpath.core.errors import ConfigError

if TYPE_CHECKING:
    from dualpath.launch.testbed import Testbed
    from dualpath.traffic.fabric_check.plan import CheckPlan
    from dualpath.traffic.fabric_check.verdict import CheckResult

CHECK = """\
Measure, between all nodes, how long a collective of model execution takes with the compute network idle and with KV
moving beside it, in phases by turns. Isolation holds where the p99 beside KV is at most 1.15 times the idle one, and
classes are set up well where KV still moves 80 % of what the collectives leave of a NIC. Exit code 1 where not both.

In a testbed (dualpath testbed up), from outside of it:
  dualpath fabric check --testbed
On a real cluster, the same command on every node but for --rank, its place among the nodes of the file that have
compute_nics; rank 0 listens at --master, an address of its compute NIC, and every rank prints the result:
  dualpath fabric check --config cluster.toml --fabric roce --rank 0 --master 10.2.0.1:29400
The environment of a rank is what fabric render writes for the first engine of its node; what is set already stays.
Best run as root, on nodes that serve nothing meanwhile: collectives then run with real-time priority.
"""


def add(actions: Any) -> None:
    parser = actions.add_parser(
        "check",
        help="measure whether KV leaves model execution alone",
        description=CHECK,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--testbed", nargs="?", const="dualpath", metavar="NAME", help="all engine hosts of this testbed (dualpath)"
    )
    where.add_argument("--config", type=Path, metavar="FILE", help="this node's part on a cluster: TOML with [[nodes]]")
    parser.add_argument("--fabric", choices=("infiniband", "roce", "ethernet"), help="with --config: its network")
    parser.add_argument("--rank", type=int, metavar="N", help="with --config: this node, from 0")
    parser.add_argument("--world", type=int, metavar="N", help="with --config: how many nodes take part (default: all)")
    parser.add_argument("--master", metavar="HOST:PORT", help="with --config: where rank 0 listens")
    parser.add_argument(
        "--contrast", action="store_true", help="with --testbed: phases with classes switched off, too, by turns"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="phases of each kind (default: 3)")
    parser.add_argument("--phase-s", type=float, default=5.0, metavar="S", help="length of a phase (default: 5)")
    parser.add_argument(
        "--message-kib", type=int, default=256, metavar="N", help="what a rank sends in one collective (default: 256)"
    )
    parser.add_argument("--period-ms", type=float, default=5.0, metavar="MS", help="one collective each (default: 5)")
    parser.add_argument(
        "--deadline-s", type=float, default=30.0, metavar="S", help="longest wait for another node (default: 30)"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    result, names = _in_testbed(arguments) if arguments.config is None else _on_this_node(arguments)
    if arguments.json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        from dualpath.launch.fabric_check import report

        print(report(result, names))
    return 0 if result.holds else 1


def _in_testbed(arguments: argparse.Namespace) -> tuple[CheckResult, list[str]]:
    from dualpath.launch.fabric_check import check_testbed, testbed_hosts
    from dualpath.launch.testbed import Testbed
    from dualpath.launch.testbed.signals import interrupted_by_signals

    for flag in ("fabric", "rank", "world", "master"):
        if getattr(arguments, flag) is not None:
            raise ConfigError(f"--{flag}: is for --config; a testbed knows it")
    testbed: Testbed = Testbed.find(arguments.testbed)
    hosts = testbed_hosts(testbed.spec)
    plan = _plan(arguments, len(hosts), testbed.spec.compute_nic_mbps)
    with interrupted_by_signals():
        return check_testbed(testbed, plan, _progress), hosts


def _on_this_node(arguments: argparse.Namespace) -> tuple[CheckResult, list[str]]:
    from dualpath.launch.fabric_check import cluster_nodes, set_environment
    from dualpath.traffic.fabric import Fabric

    for flag in ("fabric", "rank", "master"):
        if getattr(arguments, flag) is None:
            raise ConfigError(f"--{flag}: is required with --config")
    if arguments.contrast:
        raise ConfigError("--contrast: is for --testbed; on a cluster run the check again with the classes taken away")
    fabric, master = Fabric(arguments.fabric), _address(arguments.master)
    nodes = cluster_nodes(arguments.config, fabric)
    world = len(nodes) if arguments.world is None else arguments.world
    if not 2 <= world <= len(nodes):
        raise ConfigError(f"--world: must be 2 to {len(nodes)}, the nodes with compute_nics, not {world}")
    if not 0 <= arguments.rank < world:
        raise ConfigError(f"--rank: must be 0 to {world - 1}, not {arguments.rank}")
    nodes = nodes[:world]
    plan = _plan(arguments, world, min(node.compute_nics[0].rate_mbps for node in nodes))
    set_environment(fabric, nodes[arguments.rank])

    from dualpath.traffic.fabric_check.rank import run_rank

    result = run_rank(plan, arguments.rank, master, lambda number, load: _progress(f"phase {number + 1}: {load.value}"))
    return result, [node.name for node in nodes]


def _plan(arguments: argparse.Namespace, world: int, nic_mbps: float) -> CheckPlan:
    from dualpath.traffic.fabric_check.plan import KIB, CheckPlan

    return CheckPlan(
        world=world,
        nic_bytes_per_s=nic_mbps * 1e6 / 8,
        message_bytes=arguments.message_kib * KIB,
        period_s=arguments.period_ms / 1e3,
        phase_s=arguments.phase_s,
        num_rounds=arguments.rounds,
        contrast=arguments.contrast,
        deadline_s=arguments.deadline_s,
    )


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--master: must be HOST:PORT, not {text!r}")
    return host, int(port)


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
