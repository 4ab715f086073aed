"""What keeps model execution apart from KV on the compute network: files for its operator, environment for engines.

Pure: descriptions in, text out; nothing here touches a device. Called by ``testbed`` and ``validation``; imports
``core`` only. The split into two classes, and why hardware and not software makes it, is section 5 of the paper
(arXiv 2602.21548).
"""

from dualpath.traffic.fabric.environment import engine_environment
from dualpath.traffic.fabric.render import render
from dualpath.traffic.fabric.spec import ComputeNic, Fabric, FabricNode, FabricSpec, TrafficClass

__all__ = [
    "ComputeNic",
    "Fabric",
    "FabricNode",
    "FabricSpec",
    "TrafficClass",
    "engine_environment",
    "render",
]
