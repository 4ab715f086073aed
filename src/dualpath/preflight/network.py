"""Are a node's NICs there, up, and as fast as its table says? By what Linux lists of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dualpath.config import NodeConfig
from dualpath.preflight.line import Line, fail, ok, warn

SYS = Path("/sys/class")
_NO_GID = "0000:0000:0000:0000:0000:0000:0000:0000"


def check_nics(node: NodeConfig, sys: Path = SYS) -> Iterator[Line]:
    if node.storage_nic is not None:
        rate = None if node.pace_storage else node.storage_nic_mbps
        yield from _check("storage NIC", node.storage_nic, rate, "storage_nic_mbps", sys)
    for name in node.compute_nics:
        yield from _check("compute NIC", name, node.compute_nic_mbps, "compute_nic_mbps", sys)
    for name in node.rdma_devices:
        yield from _check("RDMA device", name, node.compute_nic_mbps, "compute_nic_mbps", sys)
        if node.gid_index is not None:
            yield from _check_gid(name, node.gid_index, sys)


def _check(kind: str, name: str, stated_mbps: float | None, setting: str, sys: Path) -> Iterator[Line]:
    device, _, port = name.partition(":")
    rdma = sys / "infiniband" / device
    if rdma.is_dir():
        state, mbps = _rdma_port(rdma / "ports" / (port or "1"))
    elif (sys / "net" / device).is_dir():
        state, mbps = _net_device(sys / "net" / device)
    else:
        places = [sys / place for place in ("net", "infiniband") if (sys / place).is_dir()]
        known = sorted(path.name for place in places for path in place.iterdir())
        yield fail(kind, f"{name} is not there", f"this host has {', '.join(known) or 'none'}")
        return
    if state != "up":
        yield fail(kind, f"{name} is {state}", "cable, switch port, driver")
    elif mbps is None:
        rate = "" if stated_mbps is None else f", {stated_mbps:,.0f} Mbit/s are stated"
        yield warn(kind, f"{name} is up and does not say its rate{rate}", "dualpath fabric check measures")
    elif stated_mbps is not None and mbps < stated_mbps:
        text = f"{name} runs at {mbps:,.0f} Mbit/s, {stated_mbps:,.0f} are stated"
        yield fail(kind, text, f"cable and switch port, or correct {setting}")
    elif stated_mbps is not None and mbps > 1.5 * stated_mbps:
        text = f"{name} runs at {mbps:,.0f} Mbit/s, {stated_mbps:,.0f} are stated"
        yield warn(kind, text, f"{setting} is what the scheduler goes by")
    else:
        yield ok(kind, f"{name} is up at {mbps:,.0f} Mbit/s")


def _net_device(path: Path) -> tuple[str, float | None]:
    state = _read(path / "operstate")
    speed = _read(path / "speed")
    is_known = speed.isdecimal() and int(speed) > 0  # virtual devices say -1, or nothing
    return ("up" if state in ("up", "unknown") else state or "of unknown state"), float(speed) if is_known else None


def _rdma_port(path: Path) -> tuple[str, float | None]:
    """Of "4: ACTIVE" and "400 Gb/sec (4X NDR)"."""
    if not path.is_dir():
        return f"without a port {path.name}", None
    state, rate = _read(path / "state").partition(": ")[2], _read(path / "rate").partition(" ")[0]
    try:
        mbps: float | None = float(rate) * 1e3
    except ValueError:
        mbps = None
    return ("up" if state == "ACTIVE" else state.lower() or "of unknown state"), mbps


def _check_gid(name: str, index: int, sys: Path) -> Iterator[Line]:
    device, _, port = name.partition(":")
    gid = _read(sys / "infiniband" / device / "ports" / (port or "1") / "gids" / str(index))
    if gid in ("", _NO_GID):
        yield fail("RDMA device", f"{name} has no address at gid_index {index}", "show_gids lists those that there are")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
