"""The machine under a testbed: running commands, what it must have, which processes are inside a namespace."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from dualpath.cluster.signals import held_back
from dualpath.core.errors import ConfigError, DualPathError

NETNS_DIR = Path("/run/netns")  # where iproute2 keeps named namespaces
_PROC = Path("/proc")
_TERM_S, _KILL_S, _POLL_S = 3.0, 5.0, 0.02

# What a layout needs of the kernel, each tried in a namespace that vanishes with its shell.
_PAIR = "ip link add name a type veth peer name b"
_HTB = f"{_PAIR} && tc qdisc add dev a root handle 1: htb"
_NAMESPACES = "network namespaces"
KERNEL_FEATURES = {
    _NAMESPACES: "true",
    "veth": _PAIR,
    "bridge": "ip link add name a type bridge",
    "macvlan": f"{_PAIR} && ip link add link a name m type macvlan mode bridge",
    "htb": _HTB,
    "bfifo": f"{_HTB} && tc class add dev a parent 1: classid 1:1 htb rate 1mbit && "
    "tc qdisc add dev a parent 1:1 bfifo limit 1mb",
    "u32": f"{_HTB} && tc filter add dev a parent 1: protocol ip u32 match ip dst 10.0.0.0/8 flowid 1:1",
}


class TestbedError(DualPathError):
    """A testbed could not be made, found or removed."""

    __test__ = False


def run(command: Sequence[str]) -> str:
    """Run a command to its end; its standard output. Raises TestbedError with what it said."""
    with held_back():  # interrupted while it is started, it would be nobody's, and go on
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip() or f"exit code {done.returncode}"
        raise TestbedError(f"{shlex.join(command)}: {reason}")
    return done.stdout


def require_tools() -> None:
    """Raises ConfigError where no testbed can be handled at all."""
    if os.name != "posix" or os.geteuid() != 0:
        raise ConfigError("dualpath testbed needs root, to make network namespaces")
    if not (shutil.which("ip") and shutil.which("tc")):
        raise ConfigError("dualpath testbed needs iproute2 (ip and tc): apt-get install -y iproute2")


def require_kernel() -> None:
    """Raises ConfigError that names what the kernel lacks."""
    lacks = missing_kernel_features()
    if _NAMESPACES in lacks:
        raise ConfigError("dualpath testbed may not make network namespaces: root, but without CAP_SYS_ADMIN here")
    if lacks:
        raise ConfigError(f"dualpath testbed needs a kernel with {', '.join(lacks)}, and this one is without")


def missing_kernel_features() -> list[str]:
    """Tries each feature; leaves nothing behind. Needs root, iproute2 and util-linux."""
    return [name for name, script in KERNEL_FEATURES.items() if not _works(script)]


def _works(script: str) -> bool:
    done = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, check=False)
    return done.returncode == 0


def existing_namespaces() -> set[str]:
    return {path.name for path in NETNS_DIR.iterdir()} if NETNS_DIR.is_dir() else set()


def processes_in(namespaces: Iterable[str]) -> dict[int, str]:
    """Process id -> namespace, for all processes in them, whoever started them."""
    by_inode = {}
    for name in namespaces:
        try:
            by_inode[(NETNS_DIR / name).stat().st_ino] = name
        except OSError:
            continue
    found = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            try:
                inode = (entry / "ns/net").stat().st_ino
            except OSError:  # ended meanwhile
                continue
            if inode in by_inode:
                found[int(entry.name)] = by_inode[inode]
    return found


def end_processes(namespaces: tuple[str, ...]) -> int:
    """End all processes in these namespaces, politely, then not.

    Returns how many there were. Raises TestbedError if some stay, ConfigError where that would be this process.
    """
    if os.getpid() in processes_in(namespaces):
        raise ConfigError("this command runs inside the testbed; run it from outside")
    seen = set(processes_in(namespaces))
    for number, wait_s in ((signal.SIGTERM, _TERM_S), (signal.SIGKILL, _KILL_S)):
        deadline_s = time.monotonic() + wait_s
        signalled: set[int] = set()
        while found := set(processes_in(namespaces)):
            for pid in found - signalled:  # new ones too: a process may fork while it is being ended
                _signal(pid, number)
            signalled |= found
            seen |= found
            if time.monotonic() > deadline_s:
                break
            time.sleep(_POLL_S)
    left = processes_in(namespaces)
    if left:
        raise TestbedError(f"processes {', '.join(map(str, sorted(left)))} cannot be ended")
    return len(seen)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
