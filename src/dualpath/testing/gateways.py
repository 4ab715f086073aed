"""A simulated gateway beside others: real links, real service, a desk elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dualpath.cluster.gateway import GatewayCluster
from dualpath.core.ids import NodeId
from dualpath.scheduler.service import Service
from dualpath.testing.front import Front
from dualpath.testing.loop import VirtualLoop
from dualpath.testing.nodes import SimChannel, SimNode
from dualpath.testing.parts import Surroundings, serve_config
from dualpath.testing.runtime import VirtualRuntime
from dualpath.testing.server import SimServer


class SimGateway(SimServer):
    """Clients' server; the scheduler's process is another."""

    def __init__(
        self,
        number: int,
        around: Surroundings,
        front: Front,
        nodes: Mapping[str, SimNode],
        loop: VirtualLoop,
        log: Callable[[str], None],
    ) -> None:
        self._number, self._front, self._nodes = number, front, nodes
        self._cluster: GatewayCluster | None = None
        super().__init__(f"gateway{number}", around, loop, log)

    @property
    def service(self) -> Service:
        assert self._cluster is not None
        return self._cluster.service

    async def _begin(self, runtime: VirtualRuntime) -> None:
        channels = {
            NodeId(name): SimChannel(node, self._around, runtime, self._number) for name, node in self._nodes.items()
        }
        desk = SimChannel(self._front, self._around, runtime)
        config = serve_config(self._around.scenario, self._around.url)
        self._cluster = GatewayCluster(self.name, config, channels, desk, lambda _: None, runtime)
        await self._cluster.start()

    def _end(self) -> None:
        self._loop.bury(self._cluster)

    async def close(self) -> None:
        assert self._cluster is not None
        await self._loop.create_task(self._cluster.close(5.0), context=self.context)
