"""The ``[fabric]`` table of a cluster's file: addresses that the compute network's traffic classes use."""

from __future__ import annotations

from dataclasses import dataclass

from dualpath.config.fields import Table, setting

_NETWORK = {"pattern": r"[0-9.]+/[0-9]+", "pattern_means": "an IPv4 network such as 10.3.0.0/16"}


@dataclass(frozen=True, kw_only=True)
class FabricConfig(Table):
    """Where the compute network's classes have addresses of their own; each compute NIC's rail takes a /24 of it."""

    TABLE = "fabric"
    model_network: str = setting(
        "10.2.0.0/16", help="InfiniBand: sockets of collectives, by IP over InfiniBand", **_NETWORK
    )
    kv_network: str = setting("10.3.0.0/16", help="Ethernet: KV, told from collectives by these addresses", **_NETWORK)
