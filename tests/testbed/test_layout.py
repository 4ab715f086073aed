"""A testbed on paper: what its commands say, without running any of them."""

from __future__ import annotations

import dataclasses
import re
import shlex

import pytest

from dualpath.core.errors import ConfigError
from dualpath.testbed.layout import commands, removal
from dualpath.testbed.spec import COMPUTE_NETWORK, KV_NETWORK, STORAGE_NETWORK, TestbedSpec

SPEC = TestbedSpec(nodes=("storage", "pe0", "de0", "de1"), storage_nic_mbps=200, compute_nic_mbps=800)
ENGINES = ("pe0", "de0", "de1")


def lines(spec: TestbedSpec = SPEC) -> list[str]:
    return [shlex.join(command) for command in commands(spec)]


def shaping(device: str, namespace: str, spec: TestbedSpec = SPEC) -> list[str]:
    """The tc commands for a device, without namespace and device."""
    found = [line for line in lines(spec) if line.startswith(f"tc -n {namespace} ") and f" dev {device} " in line]
    return [line.replace(f"tc -n {namespace} ", "").replace(f" dev {device} ", " ") for line in found]


def test_everything_happens_in_namespaces_of_our_own() -> None:
    """Not one command could make, change or remove a device of the machine itself."""
    inside = re.compile(r"(ip|tc) -n dualpath-[a-z0-9]+ |ip netns (add|exec) dualpath-[a-z0-9]+")
    assert all(inside.match(line) for line in lines())
    peers = [line for line in lines() if " peer name " in line]
    assert len(peers) == 7  # one link of the storage host, two of each engine host
    assert all(line.endswith("netns dualpath-switch") for line in peers)


def test_namespaces_come_first_and_are_all_that_is_removed() -> None:
    added = [line for line in lines() if line.startswith("ip netns add")]
    assert lines()[: len(added)] == added
    assert {line.split()[-1] for line in added} == set(SPEC.namespaces)
    assert [command[-1] for command in removal(SPEC.namespaces)] == list(SPEC.namespaces)


@pytest.mark.parametrize("node", ENGINES)
@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize("letter", ["s", "c"])
def test_a_link_has_the_same_shape_at_both_ends(node: str, classes: bool, letter: str) -> None:
    spec = dataclasses.replace(SPEC, classes=classes)
    at_host = shaping(f"{letter}0", f"dualpath-{node}", spec)
    assert at_host == shaping(f"{letter}-{node}", "dualpath-switch", spec)
    assert any("htb" in line for line in at_host)


def test_the_storage_host_is_not_limited() -> None:
    assert not any(line.startswith("tc -n dualpath-storage") or "s-storage root" in line for line in lines())


def test_classes_are_the_papers_shares_of_the_rate() -> None:
    tree = shaping("c0", "dualpath-pe0")
    parent, model, kv = (next(line for line in tree if f"classid {name} " in line) for name in ("1:1", "1:10", "1:20"))
    assert "rate 800000kbit ceil 800000kbit" in parent
    assert "rate 792000kbit ceil 800000kbit" in model
    assert model.endswith("prio 0")
    assert "rate 8000kbit ceil 800000kbit" in kv
    assert kv.endswith("prio 7")
    assert any("match ip dst 10.3.0.0/24 flowid 1:20" in line for line in tree)
    assert "default 10" in tree[0]


def test_without_classes_there_is_one_queue_of_the_same_rate() -> None:
    tree = shaping("c0", "dualpath-pe0", dataclasses.replace(SPEC, classes=False))
    assert sum("class add" in line for line in tree) == 1
    assert any("rate 800000kbit ceil 800000kbit" in line for line in tree)
    assert not any("filter" in line for line in tree)


def test_addresses_never_meet() -> None:
    every = [
        SPEC.address(network, host) for network in (STORAGE_NETWORK, COMPUTE_NETWORK, KV_NETWORK) for host in SPEC.hosts
    ]
    assert len(set(every)) == len(every)
    used = [word.split("/")[0] for line in lines() if " addr add " in line for word in line.split() if "/" in word]
    assert len(set(used)) == len(used) == 2 + 1 + 3 * len(ENGINES)


def test_environment_names_the_nic_of_each_class() -> None:
    engine = SPEC.environment("pe0")
    assert engine["UCX_NET_DEVICES"] == "kv0"
    assert engine["GLOO_SOCKET_IFNAME"] == "c0"
    assert engine["UCX_TLS"] == "tcp"  # one kernel under all hosts: nothing else keeps UCX on the NICs
    assert "UCX_NET_DEVICES" not in SPEC.environment("storage")


def test_a_description_survives_the_state_file() -> None:
    import json

    assert TestbedSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"nodes": ("pe0", "pe0")}, "--nodes: pe0 is listed twice"),
        ({"nodes": ("",)}, "--nodes: a host's name must be"),
        ({"nodes": ("a/b",)}, "--nodes: a host's name must be"),
        ({"nodes": ("pe0;reboot",)}, "--nodes: a host's name must be"),
        ({"nodes": ("thirteen-long",)}, "--nodes: a host's name must be at most 12"),
        ({"nodes": ("switch",)}, "--nodes: switch is there anyway"),
        ({"storage_nic_mbps": 0.0}, "--storage-nic-mbps: must be 1 to"),
        ({"compute_nic_mbps": float("nan")}, "--compute-nic-mbps: must be 1 to"),
        ({"name": "../etc"}, "--name: must be"),
    ],
    ids=str,
)
def test_bad_descriptions_are_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(reason)}"):
        dataclasses.replace(SPEC, **change)  # type: ignore[arg-type]
