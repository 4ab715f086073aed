"""What does a streamed token cost in a gateway, and a request at the desk, with every part a process of its own?

Real links over loopback TCP, the real desk, services and coordinators; engines that compute nothing. Decode engines
make a step of all their requests at a time, ``--tokens-per-s`` of them. Clients are processes that stream over HTTP
from the gateway's own server, prompts as token ids, or with ``--api none`` loops in the gateway: then HTTP, JSON and
text are not in these numbers. CPU seconds of each process, from the first to the last request.

A token's cost is the slope between the shortest and the longest answers, and what that leaves is a request's.

    python benchmarks/gateways.py --gateways 1 2 --requests 256
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scheduler_scale import BLOCK_TOKENS, GEOMETRY, NAMESPACE, IdleDecode, IdlePrefill

from dualpath.cluster.gateway import GatewayCluster
from dualpath.cluster.setup import keep_loaded
from dualpath.config import ModelConfig, ServeConfig, StoreConfig
from dualpath.core.ids import BlockKey, EngineId, NodeId, PeerId, RequestId
from dualpath.core.keys import chain_keys, root_key
from dualpath.core.plan import Role
from dualpath.core.request import FinishReason, Request, SamplingParams, TokenEvent
from dualpath.core.runtime import SystemRuntime
from dualpath.gateway.app import create_app
from dualpath.gateway.http.server import run, serve
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.models.init_tokenizer import byte_tokenizer
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


class Load(NamedTuple):
    api: str | None  # None: no HTTP
    context: int
    tokens: int  # of each answer
    requests: int  # of each gateway
    at_once: int


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
            yield DecodeStep((TokenEvent(97 + number % 26, finish_reason=reason),))  # a letter


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


async def gateway(number: int, ports: list[int], desk: int, load: Load) -> None:
    line = Line("127.0.0.1", desk, SECRET)
    config = ServeConfig(model=ModelConfig(dir=Path()), store=StoreConfig(url="memory://gateways"))
    cluster = GatewayCluster(f"gateway{number}", config, _channels(ports), line, lambda _: None, SystemRuntime())
    await cluster.start()
    service, texts = cluster.service, prompts(load.context, number, 16)
    if load.api is not None:
        app = create_app(service, Tokenizer(byte_tokenizer(1 << 20), vocab_size=1 << 20))
        keep_loaded()
        await serve(app, "127.0.0.1", 0, handle_signals=False, on_listening=lambda _, port: _say_costs(port))
        return

    async def turn(at: int) -> None:
        params = SamplingParams(max_tokens=load.tokens, seed=1)
        async for _ in service.generate(Request(RequestId(f"r{at}"), texts[at % len(texts)], params)):
            pass

    _say(port=0)
    await asyncio.to_thread(sys.stdin.readline)
    began_s, at_s = time.process_time(), time.monotonic()
    await _by_agents(load, turn)
    _say(cpu_s=time.process_time() - began_s, wall_s=time.monotonic() - at_s)


def _say_costs(port: int) -> None:
    _say(port=port)
    threading.Thread(target=_answer, daemon=True).start()


def _answer() -> None:
    while line := sys.stdin.readline():
        _say(cpu_s=time.process_time(), line=line.strip())


async def _by_agents(load: Load, turn: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    numbers = itertools.count()

    async def agent() -> None:
        while (at := next(numbers)) < load.requests:
            await turn(at)

    await asyncio.gather(*(agent() for _ in range(load.at_once)))


async def client(number: int, port: int, load: Load) -> None:
    """Streams from a gateway. A letter is a token, so that what is answered can be counted."""
    bodies = [_http(load, prompt) for prompt in prompts(load.context, number, 16)]
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    num_chunks = 0

    async def turn(at: int) -> None:
        nonlocal num_chunks
        reader, writer = free.pop() if free else await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        writer.write(bodies[at % len(bodies)])
        events = (await reader.readuntil(b"data: [DONE]\n\n")).split(b"data: ")[1:-1]
        await reader.readuntil(b"0\r\n\r\n")
        num_chunks += len(events)
        choices = [json.loads(event[: event.index(b"\n")])["choices"][0] for event in events]
        text = "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)
        if len(text) != load.tokens:
            raise AssertionError(f"{len(text)} tokens instead of {load.tokens}: {text!r}")
        free.append((reader, writer))

    _say(port=0)
    await asyncio.to_thread(sys.stdin.readline)
    at_s = time.monotonic()
    await _by_agents(load, turn)
    _say(wall_s=time.monotonic() - at_s, chunks=num_chunks)


def _http(load: Load, prompt: tuple[int, ...]) -> bytes:
    content: dict[str, object] = {"prompt": prompt}
    if load.api == "chat":
        content = {"messages": [{"role": "user", "content": "x" * load.context}]}
    body = json.dumps({**content, "model": "idle", "max_tokens": load.tokens, "stream": True, "seed": 1}).encode()
    path = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}[load.api or ""]
    return b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (path.encode(), len(body), body)


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


def measure(num_gateways: int, load: Load, step_s: float) -> Costs:
    children: list[Child] = []

    def start(*arguments: object) -> Child:
        children.append(Child(*arguments))
        return children[-1]

    try:
        nodes = [start("node", role.value, step_s) for role in Role]
        ports = [child.port for child in nodes]
        desk = start("scheduler", ports, load.context)
        gateways = [start("gateway", number, ports, desk.port, load._asdict()) for number in range(num_gateways)]
        clients, counted = gateways, [*nodes, desk]
        if load.api is not None:
            clients = [start("client", number, child.port, load._asdict()) for number, child in enumerate(gateways)]
            counted += gateways
        before_s = [child.cpu_s() for child in counted]
        for child in clients:
            child.tell()
        ends = [child.hear() for child in clients]
        costs_s = [child.cpu_s() - was_s for child, was_s in zip(counted, before_s, strict=True)]
    finally:
        for child in children:
            child.end()
    gateway_s = sum(costs_s[3:]) if load.api is not None else sum(end["cpu_s"] for end in ends)
    wall_s = max(end["wall_s"] for end in ends)
    num_requests = num_gateways * load.requests
    return Costs(num_requests, load.tokens, gateway_s, costs_s[1], costs_s[2], sum(costs_s[:3]) + gateway_s, wall_s)


class Costs(NamedTuple):
    """CPU seconds."""

    num_requests: int
    tokens: int
    gateway_s: float
    decode_s: float
    desk_s: float
    total_s: float  # without clients
    wall_s: float

    def row(self) -> str:
        num_tokens = self.num_requests * self.tokens
        return (
            f"{self.tokens:7} {self.num_requests / self.wall_s:11.1f} {1e6 * self.gateway_s / num_tokens:15.1f}"
            f" {1e6 * self.decode_s / num_tokens:14.1f} {1e3 * self.desk_s / self.num_requests:12.2f}"
            f" {100 * self.desk_s / self.total_s:12.1f}"
        )


def slope(few: Costs, many: Costs) -> str:
    token_s = (many.gateway_s - few.gateway_s) / many.num_requests / (many.tokens - few.tokens)
    request_s = few.gateway_s / few.num_requests - token_s * few.tokens
    return f"{1e6 * token_s:.1f} us a token, {1e3 * request_s:.2f} ms a request"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateways", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--api", choices=["completions", "chat", "none"], default="completions")
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 176], help="of each answer, at least 2")
    parser.add_argument("--requests", type=int, default=512, help="of each gateway")
    parser.add_argument("--at-once", type=int, default=256, help="in each gateway")
    parser.add_argument("--tokens-per-s", type=float, default=20.0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.tokens) < 2:  # the second is the first that a decode engine makes
        parser.error("--tokens: at least 2")
    if args.child:
        kind, *rest = json.loads(args.child)
        children: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
            "node": node,
            "scheduler": scheduler,
            "gateway": gateway,
            "client": client,
        }
        run(children[kind](*(Load(**part) if isinstance(part, dict) else part for part in rest)))
        return
    print("gateways  tokens  requests/s  gateway us/tok  decode us/tok  desk ms/req  desk CPU, %")
    api = None if args.api == "none" else args.api
    for num_gateways in args.gateways:
        rows = []
        for tokens in sorted(args.tokens):
            load = Load(api, args.context, tokens, args.requests, args.at_once)
            rows.append(measure(num_gateways, load, 1 / args.tokens_per_s))
            print(f"{num_gateways:8} {rows[-1].row()}", flush=True)
        if len(rows) > 1:
            print(f"{num_gateways:8} the gateway: {slope(rows[0], rows[-1])}", flush=True)


if __name__ == "__main__":
    main()
