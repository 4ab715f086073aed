"""What is applied are the paper's values (arXiv 2602.21548, section 5 and appendix A.1), wherever they are written."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from tests.traffic.fabric.test_render import CLUSTER

from dualpath.traffic.fabric import Fabric, FabricSpec, TrafficClass, engine_environment, render
from dualpath.traffic.fabric.htb import two_classes
from dualpath.traffic.fabric.lanes import HIGH_LIMIT, HIGH_LIMIT_UNIT_BYTES, ets_weights, priority
from dualpath.validation.fabric_nodes import read_fabric

MTU_BYTES = 4096
UCX_DEFAULT_TRAFFIC_CLASS = 106  # its help on IB_TRAFFIC_CLASS
MODEL, KV = TrafficClass.MODEL, TrafficClass.KV


def rendered(fabric: Fabric, path: str) -> str:
    return render(read_fabric(CLUSTER, fabric))[path]


def environment(fabric: Fabric, node: int = 0, rail: int = 0) -> dict[str, str]:
    return engine_environment(fabric, {rail: spec(fabric).nodes[node].compute_nics[rail]})


def spec(fabric: Fabric) -> FabricSpec:
    return read_fabric(CLUSTER, fabric)


def opensm() -> dict[str, str]:
    lines = rendered(Fabric.INFINIBAND, "opensm.conf").splitlines()
    return dict(line.split(" ", 1) for line in lines if line and not line.startswith("#"))


def test_opensm_options_are_the_papers() -> None:
    options = opensm()
    assert options["qos"] == "TRUE"
    assert options["qos_max_vls"] == "4"
    assert options["qos_high_limit"] == "240"
    assert options["qos_vlarb_high"] == "0:192,1:192,2:0,3:192"
    assert options["qos_vlarb_low"] == "0:192,1:192,2:64,3:192"


def test_each_class_lands_on_its_virtual_lane() -> None:
    """From an engine's environment through the service level to the arbitration tables."""
    options, engine = opensm(), environment(Fabric.INFINIBAND)
    lanes = [int(lane) for lane in options["qos_sl2vl"].split(",")]
    high, low = (
        {int(lane): int(weight) for lane, weight in (pair.split(":") for pair in options[table].split(","))}
        for table in ("qos_vlarb_high", "qos_vlarb_low")
    )
    assert len(lanes) == 16
    assert set(lanes) <= set(range(int(options["qos_max_vls"])))
    model, kv = lanes[int(engine["NCCL_IB_SL"])], lanes[int(engine["UCX_IB_SL"])]
    assert high[model] > 0
    assert high[kv] == 0 < low[kv]  # never before the model, never starved
    assert all(lanes[level] == kv for level in range(4, 16))  # what nobody gave a meaning


def test_the_model_gets_about_99_percent_of_a_contended_link() -> None:
    """After LimitOfHighPriority bytes one packet of the low-priority table goes (InfiniBand specification, 7.6.9)."""
    high_bytes = HIGH_LIMIT * HIGH_LIMIT_UNIT_BYTES
    assert high_bytes / (high_bytes + MTU_BYTES) >= 0.99
    assert 0.985 <= ets_weights()[priority(MODEL)] / (ets_weights()[priority(MODEL)] + ets_weights()[priority(KV)]) < 1


def test_partitions_and_policy_agree_on_service_levels() -> None:
    policy = rendered(Fabric.INFINIBAND, "qos-policy.conf")
    partitions = rendered(Fabric.INFINIBAND, "partitions.conf")
    engine = environment(Fabric.INFINIBAND)
    assert f"default : {engine['UCX_IB_SL']}\n" in policy
    assert f"any, pkey 0x0001 : {engine['NCCL_IB_SL']}\n" in policy
    assert re.search(rf"^Default=0x7fff, .*sl={engine['UCX_IB_SL']},", partitions, re.MULTILINE)
    assert re.search(rf"^model=0x0001, .*sl={engine['NCCL_IB_SL']},", partitions, re.MULTILINE)


def flag(script: str, name: str) -> list[str]:
    found = re.search(rf"--{name} (\S+)", script)
    assert found is not None
    return found[1].split(",")


def test_roce_has_four_lossless_priorities_and_unmarked_packets_are_in_none() -> None:
    script = rendered(Fabric.ROCE, "de0/setup.sh")
    lossless = [number for number, enabled in enumerate(flag(script, "pfc")) if enabled == "1"]
    assert len(lossless) == 4
    assert 0 not in lossless
    assert {priority(MODEL), priority(KV)} < set(lossless)
    assert sum(map(int, flag(script, "tcbw"))) == 100
    shares = zip(flag(script, "tsa"), flag(script, "tcbw"), strict=True)
    assert all((algorithm == "ets") == (share != "0") for algorithm, share in shares)  # mlnx_qos refuses anything else


def test_roce_marks_reach_the_queue_of_their_class() -> None:
    """From an engine's environment through DSCP and priority to the queue and its weight."""
    script, engine = rendered(Fabric.ROCE, "de0/setup.sh"), environment(Fabric.ROCE)
    to_priority = {int(mark): int(prio) for mark, prio in re.findall(r"--dscp2prio set,(\d+),(\d+)$", script, re.M)}
    assert script.count("--dscp2prio") == len(to_priority), "of several in one command mlnx_qos obeys the last"
    queues, weights = flag(script, "prio_tc"), [int(weight) for weight in flag(script, "tcbw")]

    def weight(traffic_class: str) -> int:
        return weights[int(queues[to_priority[int(engine[traffic_class]) >> 2]])]

    assert weight("NCCL_IB_TC") >= 95
    assert weight("UCX_IB_TRAFFIC_CLASS") == 1
    assert (
        int(engine["NCCL_IB_TC"]) & 0b11 == int(engine["UCX_IB_TRAFFIC_CLASS"]) & 0b11 == 0b10
    )  # may be marked by ECN
    assert f"cma_roce_tos -d mlx5_2 -p 2 -t {engine['UCX_IB_TRAFFIC_CLASS']}\n" in script
    assert priority(KV) == UCX_DEFAULT_TRAFFIC_CLASS >> 2 >> 3  # a NIC maps DSCP by its upper three bits
    assert all(mark >> 3 == prio for mark, prio in to_priority.items())


def test_ethernet_gives_each_class_its_share_of_the_rate() -> None:
    tree = [" ".join(command) for command in two_classes("e1", 1000, ip_network("10.3.0.0/24"))]  # type: ignore[arg-type]
    kbit = {found[1]: int(found[2]) for line in tree if (found := re.search(r"classid (\S+) htb rate (\d+)kbit", line))}
    assert kbit["1:1"] == 1_000_000
    assert kbit["1:10"] / kbit["1:1"] == 0.99
    assert kbit["1:10"] + kbit["1:20"] == kbit["1:1"]
    assert all("ceil 1000000kbit" in line for line in tree if "classid" in line)  # KV may take all that is idle


def test_ethernet_tells_kv_by_the_addresses_that_it_gives_out() -> None:
    for fabric_node, rail in ((0, 0), (0, 1), (1, 0)):
        node = spec(Fabric.ETHERNET).nodes[fabric_node]
        script = rendered(Fabric.ETHERNET, f"{node.name}/setup.sh")
        device = environment(Fabric.ETHERNET, fabric_node, rail)["UCX_NET_DEVICES"]
        address = re.search(rf"ip addr replace (\S+)/24 dev {device}\n", script)
        filters = re.findall(rf"dev {node.compute_nics[rail].netdev} .*match ip dst (\S+) flowid 1:20", script)
        assert address is not None
        assert len(filters) == 1
        assert ip_address(address[1]) in ip_network(filters[0])


@pytest.mark.parametrize("fabric", Fabric, ids=lambda fabric: fabric.value)
def test_engines_of_a_node_use_different_nics(fabric: Fabric) -> None:
    first, second = environment(fabric, 0, 0), environment(fabric, 0, 1)
    for name in ("UCX_NET_DEVICES", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        assert first[name] != second[name]


@pytest.mark.parametrize("fabric", [Fabric.INFINIBAND, Fabric.ROCE], ids=lambda fabric: fabric.value)
def test_gid_index_only_where_given(fabric: Fabric) -> None:
    assert not any("GID" in name for name in environment(fabric, 0))
    assert {name: value for name, value in environment(fabric, 1).items() if "GID" in name} == {
        "UCX_IB_GID_INDEX": "3",
        "NCCL_IB_GID_INDEX": "3",
    }


def test_ucx_knows_the_variables() -> None:
    """A name that UCX does not know would be ignored, and KV run in the model's class."""
    nixl = pytest.importorskip("nixl_cu12")
    libraries = list((Path(nixl.__file__).parent.parent / "nixl_cu12.libs").rglob("libuct_ib.so*"))
    if not libraries:
        pytest.skip("this build of NIXL brings no UCX with InfiniBand")
    content = libraries[0].read_bytes()
    used = {name for fabric in Fabric for name in environment(fabric, 1) if name.startswith("UCX_IB_")}
    assert used == {"UCX_IB_SL", "UCX_IB_TRAFFIC_CLASS", "UCX_IB_GID_INDEX"}
    for name in used:
        assert b"\0" + name.removeprefix("UCX_IB_").encode() + b"\0" in content
