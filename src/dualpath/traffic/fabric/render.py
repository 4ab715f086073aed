"""All files for one fabric: path -> text."""

from __future__ import annotations

from dualpath.traffic.fabric import ethernet, infiniband, roce
from dualpath.traffic.fabric.environment import render_environments
from dualpath.traffic.fabric.spec import Fabric, FabricNode, FabricSpec


def render(spec: FabricSpec) -> dict[str, str]:
    """Relative path -> content: what the network's own machines get at the top, then a folder for each node.

    ``*.sh`` are scripts for bash, the rest is text. The same spec always gives the same bytes.
    """
    files = infiniband.render_subnet_manager() if spec.fabric is Fabric.INFINIBAND else {"switch.txt": _switch(spec)}
    for node in spec.nodes:
        if not node.compute_nics:
            continue
        files[f"{node.name}/setup.sh"] = _setup(spec, node)
        for name, text in render_environments(spec, node).items():
            files[f"{node.name}/{name}"] = text
    return files


def _switch(spec: FabricSpec) -> str:
    return roce.render_switch() if spec.fabric is Fabric.ROCE else ethernet.render_switch()


def _setup(spec: FabricSpec, node: FabricNode) -> str:
    if spec.fabric is Fabric.INFINIBAND:
        return infiniband.render_node(spec, node)
    return roce.render_node(node) if spec.fabric is Fabric.ROCE else ethernet.render_node(spec, node)
