"""The whole scheduler in one process: a desk, and one service that has the only seat at it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.keys import Namespace
from dualpath.core.runtime import Runtime, SystemRuntime
from dualpath.core.stats import ClusterFacts, NodeStats
from dualpath.protocol.api import DecodeEngineClient, NodeCalls, PrefillEngineClient
from dualpath.scheduler.blocks import IndexView
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.desk.desk import Desk
from dualpath.scheduler.desk.weight_updates import OpenNamespace
from dualpath.scheduler.service import Service
from dualpath.store.contract import BlockDirectory


class Scheduler:
    """Built inside the serving event loop, from engines that are ready."""

    def __init__(
        self,
        *,
        prefill_engines: Sequence[PrefillEngineClient],
        decode_engines: Sequence[DecodeEngineClient],
        index: IndexView,
        store: BlockDirectory,
        namespace: Namespace,
        model_name: str,
        max_context_tokens: int,
        config: SchedulerConfig | None = None,
        runtime: Runtime | None = None,
        describe_nodes: Callable[[], tuple[NodeStats, ...]] = tuple,
        facts: ClusterFacts | None = None,
        open_namespace: OpenNamespace | None = None,
        nodes: Mapping[NodeId, NodeCalls] | None = None,
    ) -> None:
        """``open_namespace``: makes the index know what is stored for other weights; None: there are no others."""
        config, runtime = config or SchedulerConfig(), runtime or SystemRuntime()
        self.desk = Desk(
            prefill_engines=prefill_engines,
            decode_engines=decode_engines,
            index=index,
            store=store,
            namespace=namespace,
            open_namespace=open_namespace,
            config=config,
            runtime=runtime,
            nodes=nodes,
        )
        self.service = Service(
            self.desk.seat(),
            prefill_engines=prefill_engines,
            decode_engines=decode_engines,
            namespace=namespace,
            model_name=model_name,
            max_context_tokens=max_context_tokens,
            config=config,
            runtime=runtime,
            describe_nodes=describe_nodes,
            facts=facts,
        )

    async def start(self, held: Iterable[tuple[EngineId, RequestId]] = (), gateways: Iterable[str] = ()) -> None:
        """Accept requests when engines know each other. ``held``, ``gateways``: ``Desk.start``."""
        await self.desk.start(held, gateways)
        self.service.open()

    async def close(self, drain_s: float = 30.0) -> None:
        """Let running requests end for ``drain_s``, cancel the rest; nothing is held on return."""
        await self.service.close(drain_s)
        await self.desk.close()
