"""An engine node of a testbed as a process in its host's namespace: what it is comes pickled on stdin."""

from __future__ import annotations

import asyncio
import pickle
import signal
import sys
from dataclasses import dataclass, field

from dualpath.cluster.node_process import NodeProcess, watch_lease
from dualpath.cluster.setup import set_up_process
from dualpath.config import NodeConfig, ServeConfig
from dualpath.core.parent import end_with_parent
from dualpath.protocol.socket_channel import NodeServer


@dataclass(frozen=True, slots=True)
class NodeOrder:
    config: ServeConfig
    node: NodeConfig
    host: str  # where it listens for its scheduler
    port: int
    secret: bytes = field(repr=False)  # of this process's scheduler


def main() -> int:
    end_with_parent()
    order: NodeOrder = pickle.load(sys.stdin.buffer)
    set_up_process(order.config)
    asyncio.run(_serve(order))
    return 0


async def _serve(order: NodeOrder) -> None:
    process, stop = NodeProcess(order.config, order.node), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = NodeServer(process, order.secret)
    await server.start(order.host, order.port)
    watch_lease(process, order.config.ray.lease_s)
    await stop.wait()
    await server.close()
    await process.close()
    await server.end()  # cut off by the loop's end, each connection that is still there would log a traceback


if __name__ == "__main__":
    sys.exit(main())
