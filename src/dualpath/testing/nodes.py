"""Simulated node processes and the lines to them: the real ``NodeProcess`` behind a channel that can break."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Protocol, TypeVar

from dualpath.cluster.node_process import NodeProcess, Parts
from dualpath.config import NodeConfig, ServeConfig
from dualpath.core.errors import DualPathError, EngineGoneError
from dualpath.core.plan import Role
from dualpath.core.runtime import Runtime
from dualpath.protocol.channel import Process as ChannelEnd
from dualpath.testing.loop import Process, VirtualLoop
from dualpath.testing.parts import NodeWorks, Surroundings
from dualpath.testing.runtime import VirtualRuntime

T = TypeVar("T")

_LATENCY_S = (2e-4, 3e-3)
NOTICED_S = 0.05  # after a process has ended, its connections break


class SimNode:
    """A node, over all its incarnations."""

    def __init__(
        self, around: Surroundings, config: ServeConfig, node: NodeConfig, loop: VirtualLoop, log: Callable[[str], None]
    ) -> None:
        self.name, self.role = node.name, Role(node.role)
        self._around, self._config, self._node, self._loop, self._log = around, config, node, loop, log
        self.num_lives = 0
        self._pending: dict[asyncio.Future[bytes], None] = {}  # questions that the present life has been asked
        self._start()

    # -- life ---------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.num_lives += 1
        self.process = Process(f"{self.name}#{self.num_lives}")
        self.context: Context = self.process.context()
        runtime = VirtualRuntime(self._loop, f"{self._around.scenario.seed} {self.process.name}")
        self.main: NodeProcess = self.context.run(self._make, runtime)
        self._loop.create_task(self._watch_lease(self.process, self.main), context=self.context)

    def kill(self) -> None:
        """As SIGKILL; it starts again after a while."""
        if self.process.is_alive:
            Context().run(self._kill)  # whoever asks for it may be the one that dies

    def _kill(self) -> None:
        self._log(f"{self.process.name} killed")
        self._loop.kill(self.process)
        for engine_id in [e for e in self._around.engines if self._around.weather.node_of(e) == self.name]:
            self._around.fabric.kill(engine_id)
            self._loop.bury(self._around.engines.pop(engine_id))
        self._loop.bury(self.main)
        for question in self._pending:
            self._loop.call_later(NOTICED_S, fail, question, DualPathError("the connection broke"))
        self._pending = {}
        self._loop.call_later(self._around.scenario.restarts_after_s, self._restart)

    def stop(self, for_s: float) -> None:
        """As SIGSTOP, and SIGCONT later."""
        process = self.process
        if process.is_alive and not process.is_stopped:
            self._log(f"{process.name} stopped for {for_s:.3f} s")
            self._loop.stop_process(process)
            self._loop.call_later(for_s, self._continue, process, context=Context())

    def _restart(self) -> None:
        self._log(f"{self.name} starts again")
        self._start()

    def _continue(self, process: Process) -> None:
        if process.is_alive:
            self._log(f"{process.name} goes on")
            self._loop.continue_process(process)

    def _make(self, runtime: VirtualRuntime) -> NodeProcess:
        async def build(_: ServeConfig, __: NodeConfig, ___: Runtime, ____: Callable[[str], None]) -> Parts:
            return NodeWorks(self._around, self.name, self.role, runtime)

        return NodeProcess(self._config, self._node, runtime, build)

    async def _watch_lease(self, process: Process, main: NodeProcess) -> None:
        lease_s = self._config.ray.lease_s
        while main.silent_s < lease_s:
            await asyncio.sleep(1.0)
        self._log(f"{process.name} has not heard its scheduler for {lease_s:g} s")
        if process is self.process:
            self.kill()

    # -- questions ----------------------------------------------------------------------------------------------------

    async def carry_out(self, ask: Callable[[ChannelEnd], Awaitable[bytes]]) -> bytes:
        return await carry_out(self.main, ask, self._loop, self.context, self._pending)


async def carry_out(
    main: ChannelEnd,
    ask: Callable[[ChannelEnd], Awaitable[bytes]],
    loop: VirtualLoop,
    context: Context,
    pending: dict[asyncio.Future[bytes], None],
) -> bytes:
    """Have a process answer, in its own context; never, if it is stopped or is killed meanwhile."""
    answer: asyncio.Future[bytes] = loop.create_future()
    pending[answer] = None

    async def run(main: ChannelEnd) -> None:
        try:
            result = await ask(main)
        except Exception as error:  # over there; here it is what a connection carries
            fail(answer, DualPathError(str(error) or repr(error)))
        else:
            if not answer.done():
                answer.set_result(result)

    loop.create_task(run(main), context=context)
    try:
        return await answer
    finally:
        pending.pop(answer, None)


class FarEnd(Protocol):
    """What a channel leads to: a process over all its lives."""

    name: str
    process: Process

    def kill(self) -> None: ...

    async def carry_out(self, ask: Callable[[ChannelEnd], Awaitable[bytes]]) -> bytes: ...


class SimChannel:
    """``protocol.channel.Channel`` to a simulated node, or to the scheduler."""

    def __init__(self, node: FarEnd, around: Surroundings, runtime: VirtualRuntime, gateway: int | None = None) -> None:
        """``gateway``: whose it is; None: the scheduler's."""
        self._node, self._weather, self._runtime, self._gateway = node, around.weather, runtime, gateway

    async def open(self, session: str) -> bytes:
        return await self._ask(lambda main: main.open(session))

    async def send(self, session: str, batch: bytes) -> None:
        async def send(main: ChannelEnd) -> bytes:
            await main.send(session, batch)
            return b""

        if self._weather.meets("late sends", self._node.name):
            late = asyncio.ensure_future(self._late(send))
            late.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            raise DualPathError("the connection broke")
        await self._ask(send)

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        return await self._ask(lambda main: main.poll(session, max_wait_s))

    def end_process(self) -> None:
        self._node.kill()

    async def _late(self, ask: Callable[[ChannelEnd], Awaitable[bytes]]) -> None:
        await asyncio.sleep(self._runtime.chance.uniform(0.1, 3.0))
        await self._ask(ask)

    async def _ask(self, ask: Callable[[ChannelEnd], Awaitable[bytes]]) -> bytes:
        """What has been sent arrives, some time, also when whoever sent it has given up."""
        exchange = asyncio.ensure_future(self._exchange(ask))
        exchange.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return await asyncio.shield(exchange)

    async def _exchange(self, ask: Callable[[ChannelEnd], Awaitable[bytes]]) -> bytes:
        await self._pass()
        if not self._node.process.is_alive:
            raise EngineGoneError(f"{self._node.process.name} has ended")
        answer = await self._node.carry_out(ask)
        await self._pass()
        return answer

    async def _pass(self) -> None:
        """Cross the line, if it lets anything through."""
        await asyncio.sleep(self._runtime.chance.uniform(*_LATENCY_S))
        if self._hangs():
            while self._hangs():
                await asyncio.sleep(0.05)
            await asyncio.sleep(self._runtime.chance.uniform(0, 1.0))  # overtaken by what is sent now
        kind = "cut line" if self._node.name in self._weather.nodes else "cut desk"
        if self._weather.meets(kind, self._node.name if kind == "cut line" else None):
            raise DualPathError("the connection broke")

    def _hangs(self) -> bool:
        if self._weather.strength("hang line", self._node.name):
            return True
        return self._gateway is not None and self._weather.parts(self._gateway, self._node.name)


def fail(future: asyncio.Future[bytes], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
