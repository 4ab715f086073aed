"""What does a streamed token cost in a gateway, and a request at the desk, with every part a process of its own?

Real links over loopback TCP, the real desk, services and coordinators; engines that compute nothing. Decode engines
make a step of all their requests at a time, ``--tokens-per-s`` of them. Clients are loops in the gateway, so HTTP,
tokenizers and JSON are not in these numbers. CPU seconds of each process, from the first to the last request.

    python benchmarks/gateways.py --gateways 1 2 --requests 256
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from scheduler_scale import BLOCK_TOKENS, GEOMETRY, NAMESPACE, IdleDecode, IdlePrefill

from dualpath.cluster.gateway import GatewayCluster
from dualpath.config import ModelConfig, ServeConfig, StoreConfig
from dualpath.core.ids import BlockKey, EngineId, NodeId, PeerId, RequestId
from dualpath.core.keys import chain_keys, root_key
from dualpath.core.plan import Role
from dualpath.core.request import FinishReason, Request, SamplingParams, TokenEvent
from dualpath.core.runtime import SystemRuntime
from dualpath.protocol import wire
from dualpath.protocol.api import NODE, PROTOCOLS, DecodeOrder, DecodeStep, EngineInfo, NodeCalls
from dualpath.protocol.client import RemoteDecodeEngine, RemotePrefillEngine, stub
from dualpath.protocol.host import EngineServer, Served
from dualpath.protocol.node_link import LinkConfig, NodeLink
from dualpath.protocol.socket_channel import NodeServer, SocketChannel
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.desk.desk import Desk
from dualpath.scheduler.desk.server import DeskServer
from dualpath.store.header import object_bytes
from dualpath.store.index import BlockIndex
from dualpath.store.memory import MemoryStore

SECRET = b"of a benchmark on loopback"
ENGINES_PER_NODE = 8
CONFIG = SchedulerConfig(alpha_tokens=1 << 22, beta_tokens=1 << 22, max_queued_requests=1 << 20, path_policy="split")


class SteppingDecode(IdleDecode):
    """All its requests take a token with each step."""

    def __init__(self, info: EngineInfo, step_s: float) -> None:
        super().__init__(info)
        self._step_s = step_s
        self._next = asyncio.Event()
        self._stepping = asyncio.create_task(self._step())

    async def _step(self) -> None:
        while True:
            await asyncio.sleep(self._step_s)
            done, self._next = self._next, asyncio.Event()
            done.set()

    async def decode(self, order: DecodeOrder) -> AsyncIterator[DecodeStep]:
        yield DecodeStep(admitted=True)
        num_left = order.request.sampling.max_tokens - 1
        for number in range(num_left):
            await self._next.wait()
            reason = FinishReason.LENGTH if number == num_left - 1 else None
            yield DecodeStep((TokenEvent(number, finish_reason=reason),))


class IdleNode:
    """``protocol.channel.Process``."""

    def __init__(self, role: Role, step_s: float) -> None:
        infos = [_info(role, number) for number in range(ENGINES_PER_NODE)]
        engines = [IdlePrefill(i) if role is Role.PREFILL else SteppingDecode(i, step_s) for i in infos]
        self._server = EngineServer(
            {i.engine_id: Served(e, PROTOCOLS[role]) for i, e in zip(infos, engines, strict=True)}
        )
        self._report = wire.NodeReport(NAMESPACE, "idle", 1 << 20, tuple(infos), wire.encode(CONFIG), "host", 1)

    async def open(self, session: str) -> bytes:
        held = await self._server.open(session)
        return wire.encode(wire.Opened("1", (), None, self._report, held, self._server.others(session)))

    async def send(self, session: str, batch: bytes) -> None:
        self._server.receive(session, batch)

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        return await self._server.poll(session, max_wait_s)


class Line(SocketChannel):
    def end_process(self) -> None:
        """Nobody is killed here."""


def _info(role: Role, number: int) -> EngineInfo:
    name = f"{role.value}{number}"
    return EngineInfo(EngineId(name), PeerId(f"{name}.1"), NodeId(role.value), role, 1 << 20, 1 << 22, b"")


def _channels(ports: Sequence[int]) -> dict[NodeId, Line]:
    return {NodeId(role.value): Line("127.0.0.1", port, SECRET) for role, port in zip(Role, ports, strict=True)}


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def _serve(process: object) -> None:
    """Until the parent closes stdin; then what it cost."""
    server = NodeServer(process, SECRET)  # type: ignore[arg-type]
    _say(port=await server.start("127.0.0.1", 0))
    while line := await asyncio.to_thread(sys.stdin.readline):
        _say(cpu_s=time.process_time(), line=line.strip())


async def node(role: str, step_s: float) -> None:
    await _serve(IdleNode(Role(role), step_s))


def prompts(context: int, gateway: int, num_agents: int) -> list[tuple[int, ...]]:
    return [tuple(range(1000 * gateway + i, 1000 * gateway + i + context + BLOCK_TOKENS)) for i in range(num_agents)]


async def scheduler(ports: list[int], context: int) -> None:
    runtime = SystemRuntime()
    links = [NodeLink(n, c, LinkConfig(), lambda *_: None, print, runtime) for n, c in _channels(ports).items()]
    await asyncio.gather(*(link.start() for link in links))
    index = BlockIndex(object_bytes(GEOMETRY))
    for prompt in itertools.chain.from_iterable(prompts(context, gateway, 16) for gateway in range(4)):
        parent: BlockKey | None = None
        for key in chain_keys(root_key(NAMESPACE), prompt[:context], BLOCK_TOKENS):
            index.begin_write(key, parent)
            index.publish(key)
            parent = key
    desk = Desk(
        prefill_engines=[RemotePrefillEngine(links[0], info.engine_id) for info in links[0].report.engines],
        decode_engines=[RemoteDecodeEngine(links[1], info.engine_id) for info in links[1].report.engines],
        index=index,
        store=MemoryStore("memory://gateways", NAMESPACE.digest, GEOMETRY),
        namespace=NAMESPACE,
        config=CONFIG,
        runtime=runtime,
        nodes={link.report.engines[0].node_id: stub(NodeCalls)(link, NODE) for link in links},
    )
    await desk.start()
    report = wire.NodeReport(NAMESPACE, "idle", 1 << 20, (), wire.encode(CONFIG), "host", 1)
    await _serve(DeskServer(desk, report, runtime, 10.0))


async def gateway(
    number: int, ports: list[int], desk: int, context: int, tokens: int, requests: int, at_once: int
) -> None:
    line = Line("127.0.0.1", desk, SECRET)
    config = ServeConfig(model=ModelConfig(dir=Path()), store=StoreConfig(url="memory://gateways"))
    cluster = GatewayCluster(f"gateway{number}", config, _channels(ports), line, lambda _: None, SystemRuntime())
    await cluster.start()
    numbers = itertools.count()
    texts = prompts(context, number, 16)

    async def agent() -> None:
        while (at := next(numbers)) < requests:
            params = SamplingParams(max_tokens=tokens, seed=1)
            async for _ in cluster.service.generate(Request(RequestId(f"r{at}"), texts[at % len(texts)], params)):
                pass

    _say(port=0)
    await asyncio.to_thread(sys.stdin.readline)
    began_s, at_s = time.process_time(), time.monotonic()
    await asyncio.gather(*(agent() for _ in range(at_once)))
    _say(cpu_s=time.process_time() - began_s, wall_s=time.monotonic() - at_s)


class Child:
    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, __file__, "--child", json.dumps(arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = self.hear()["port"]

    def hear(self) -> dict[str, float]:
        assert self._process.stdout is not None
        heard: dict[str, float] = json.loads(self._process.stdout.readline())
        return heard

    def tell(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def cpu_s(self) -> float:
        self.tell()
        return self.hear()["cpu_s"]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(num_gateways: int, context: int, tokens: int, requests: int, at_once: int, step_s: float) -> str:
    children: list[Child] = []
    try:
        for role in Role:
            children.append(Child("node", role.value, step_s))
        ports = [child.port for child in children]
        children.append(Child("scheduler", ports, context))
        shared = list(children)
        gateways = [
            Child("gateway", number, ports, shared[-1].port, context, tokens, requests, at_once)
            for number in range(num_gateways)
        ]
        children += gateways
        before_s = [child.cpu_s() for child in shared]
        for child in gateways:
            child.tell()
        ends = [child.hear() for child in gateways]
        shared_s = [child.cpu_s() - was_s for child, was_s in zip(shared, before_s, strict=True)]
    finally:
        for child in children:
            child.end()
    num_requests, gateway_s = num_gateways * requests, sum(end["cpu_s"] for end in ends)
    num_tokens, total_s = num_requests * tokens, gateway_s + sum(shared_s)
    return (
        f"{num_gateways:8} {tokens:7} {num_requests / max(end['wall_s'] for end in ends):11.0f}"
        f" {1e6 * gateway_s / num_tokens:13.1f} {1e6 * shared_s[1] / num_tokens:12.1f}"
        f" {1e3 * shared_s[2] / num_requests:12.2f} {100 * shared_s[2] / total_s:11.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateways", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2, 176], help="of each answer")
    parser.add_argument("--requests", type=int, default=512, help="of each gateway")
    parser.add_argument("--at-once", type=int, default=256, help="in each gateway")
    parser.add_argument("--tokens-per-s", type=float, default=20.0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, *rest = json.loads(args.child)
        children: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
            "node": node,
            "scheduler": scheduler,
            "gateway": gateway,
        }
        asyncio.run(children[kind](*rest))
        return
    print("gateways  tokens  requests/s  gateway us/tok  decode us/tok  desk ms/req  desk CPU, %")
    for tokens, num_gateways in itertools.product(args.tokens, args.gateways):
        row = measure(num_gateways, args.context, tokens, args.requests, args.at_once, 1 / args.tokens_per_s)
        print(row, flush=True)


if __name__ == "__main__":
    main()
