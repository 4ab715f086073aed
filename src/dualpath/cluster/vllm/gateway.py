"""A gateway beside others in front of vLLM servers: it asks them itself, and has answers come to it alone."""

from __future__ import annotations

from dataclasses import replace

from dualpath.cluster.gateway import GatewayCluster
from dualpath.cluster.setup import Progress
from dualpath.cluster.vllm.servers import Servers
from dualpath.config import ServeConfig
from dualpath.core.exchange import Exchanges
from dualpath.core.ids import NodeId
from dualpath.core.runtime import Runtime
from dualpath.protocol.api import EngineInfo
from dualpath.protocol.channel import Channel
from dualpath.protocol.node_link import NodeLink
from dualpath.vllm.engine_client import add_engine
from dualpath.vllm.upstream import VllmUpstream


class VllmGateway(GatewayCluster):
    """Which servers there are, and what becomes of them, is the scheduler's."""

    def __init__(
        self, name: str, config: ServeConfig, servers: Servers, desk: Channel, progress: Progress, runtime: Runtime
    ) -> None:
        """``servers``: of ``config.nodes``; none is started or ended here."""
        channels = {node_id: servers.channel(node_id) for node_id in servers.apis}
        super().__init__(name, config, channels, desk, progress, runtime)
        self._servers, self._exchanges = servers, Exchanges(self._scope)
        self.upstream = VllmUpstream(list(servers.apis.values()), self._exchanges)

    def _link_to_node(self, node_id: NodeId, channel: Channel) -> NodeLink:
        return self._link(node_id, channel, replace(self._config, heartbeat_s=self._settings.vllm.heartbeat_s))

    def _add_engine(self, link: NodeLink, info: EngineInfo) -> None:
        add_engine(link, info, self._servers.apis[link.node_id], self._exchanges, self._prefill, self._decode)

    async def close(self, drain_s: float) -> None:
        await super().close(drain_s)
        for server in self._servers.apis.values():
            await server.close()
