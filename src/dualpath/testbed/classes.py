"""Switching the traffic classes of a standing testbed off and on again: KV then waits in model execution's queue."""

from __future__ import annotations

from dualpath.testbed.lifecycle import Testbed
from dualpath.testbed.spec import COMPUTE_NIC, KV_NETWORK, SWITCH
from dualpath.testbed.system import run
from dualpath.traffic.fabric.htb import Command, two_classes


def set_classes(testbed: Testbed, *, on: bool) -> None:
    """At both ends of every compute link. Idempotent. The testbed must have been made with classes."""
    assert testbed.spec.classes
    for command in class_commands(testbed, on=on):
        run(command)


def class_commands(testbed: Testbed, *, on: bool) -> list[Command]:
    """What is switched is the filter that puts KV's addresses into KV's class; without it all is model execution's."""
    spec = testbed.spec
    out: list[Command] = []
    for node in filter(spec.has_compute, spec.nodes):
        for host, device in ((node, COMPUTE_NIC), (SWITCH, f"c-{node}")):
            tc = ("tc", "-n", spec.namespace(host))
            out.append((*tc, "filter", "del", "dev", device, "parent", "1:"))
            if on:
                shaping = two_classes(device, spec.compute_nic_mbps, KV_NETWORK)
                out += [(*tc, *command[1:]) for command in shaping if command[1] == "filter"]
    return out
