"""What the kernel counted of a testbed's compute NIC, by traffic class."""

from __future__ import annotations

import re

from dualpath.testbed.spec import COMPUTE_NIC, TestbedSpec
from dualpath.testbed.system import run
from dualpath.traffic.fabric.htb import KV_CLASS, MODEL_CLASS

# Older tc prints classes as text only.
_CLASS = re.compile(r"class htb (\S+) .*\n Sent (\d+) bytes")


def sent_by_class(spec: TestbedSpec, host: str) -> tuple[int, int]:
    """(model, kv): bytes that a host's compute NIC has sent. With ``classes`` off everything counts as model."""
    text = run(("tc", "-n", spec.namespace(host), "-s", "class", "show", "dev", COMPUTE_NIC))
    counts = {name: int(num_bytes) for name, num_bytes in _CLASS.findall(text)}
    return counts[MODEL_CLASS], counts.get(KV_CLASS, 0)
