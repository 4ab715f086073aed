"""Hosts on one machine: network namespaces with shaped NICs. Called by ``cli.testbed`` and by what runs in a testbed.

``spec`` says what there is, ``layout`` turns it into commands (pure), ``lifecycle`` brings it up and down, ``counters``
reads what the kernel counted. Everything is made inside namespaces of our own, so removing those removes everything.
"""

from dualpath.testbed.lifecycle import Testbed, TestbedError
from dualpath.testbed.spec import TestbedSpec

__all__ = ["Testbed", "TestbedError", "TestbedSpec"]
