"""What does the scheduler cost for each request and each token, from 24 to 1,152 engines that do nothing?

The whole control plane of one process: placement, loads, reading queues, the block index, and every request's
coordinator. Engines answer at once, so all CPU time is the control plane's and that of the answers' few lines. Each
request comes with a stored context and 64 new tokens of prompt, as an agent's next turn does. The load for each engine
is the same everywhere. The published workload at 1,152 GPUs is 8.8 agents/s x 157 turns = 1,380 requests/s, with 176
tokens each (arXiv 2602.21548, section 7); the limit is one core.

``central``: of that only what there can be one of: placement, loads, reading queues, path choice and block index.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import itertools
import logging
import pstats
import resource
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey, EngineId, NodeId, PeerId, RequestId
from dualpath.core.keys import Namespace, chain_keys, root_key
from dualpath.core.plan import Role
from dualpath.core.request import FinishReason, Request, SamplingParams, TokenEvent
from dualpath.core.runtime import SystemRuntime
from dualpath.core.stats import EngineStats
from dualpath.core.weights import Weights
from dualpath.protocol.api import DecodeOrder, DecodeStep, EngineInfo, PrefillOrder, ReadOutcome
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.demand import Demand
from dualpath.scheduler.desk.seat import Seat
from dualpath.scheduler.scheduler import Scheduler
from dualpath.store.header import object_bytes
from dualpath.store.index import BlockIndex
from dualpath.store.memory import MemoryStore

BLOCK_TOKENS = 64
NEW_TOKENS = 64
ENGINES_PER_NODE = 8
GEOMETRY = KvGeometry(num_layers=1, block_tokens=BLOCK_TOKENS, bytes_per_token_layer=16)
NAMESPACE = Namespace("idle", "none", GEOMETRY, "none")


@dataclass
class IdleEngine:
    """Answers at once and holds nothing."""

    info: EngineInfo

    async def add_peer(self, peer_metadata: bytes) -> None: ...

    async def remove_peer(self, peer: PeerId) -> None: ...

    async def peer_at_rest(self, peer: PeerId) -> None: ...

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def weights(self) -> tuple[Weights, str]:
        return Weights(), NAMESPACE.model_fingerprint

    async def load_weights(self, weights: Weights) -> str:
        return NAMESPACE.model_fingerprint

    async def use_weights(self, weights: Weights) -> None: ...

    async def drop_weights(self, weights: Weights) -> None: ...

    async def read(
        self, request_id: RequestId, blocks: Sequence[tuple[int, BlockKey]], digest: bytes = b""
    ) -> ReadOutcome:
        await asyncio.sleep(0)
        return ReadOutcome(frozenset(index for index, _ in blocks))

    async def stats(self) -> EngineStats:
        info = self.info
        return EngineStats(info.engine_id, info.node_id, info.role)


class IdlePrefill(IdleEngine):
    async def reserve(self, request_id: RequestId, num_slots: int, num_prompt_blocks: int) -> None: ...

    async def release(self, request_id: RequestId) -> bool:
        return True

    async def prefill(self, order: PrefillOrder) -> AsyncIterator[TokenEvent | None]:
        yield None
        yield TokenEvent(1)


class IdleDecode(IdleEngine):
    async def reserve(self, request_id: RequestId, num_slots: int) -> tuple[int, ...]:
        return tuple(range(num_slots))

    async def release(self, request_id: RequestId) -> None: ...

    async def stop(self, request_id: RequestId) -> None: ...

    async def decode(self, order: DecodeOrder) -> AsyncIterator[DecodeStep]:
        yield DecodeStep(admitted=True)
        num_left = order.request.sampling.max_tokens - 1
        for number in range(num_left):
            await asyncio.sleep(0)
            reason = FinishReason.LENGTH if number == num_left - 1 else None
            yield DecodeStep((TokenEvent(number, finish_reason=reason),))


def _info(role: Role, number: int) -> EngineInfo:
    name = f"{role.value}{number}"
    node = NodeId(f"{role.value}-node{number // ENGINES_PER_NODE}")
    return EngineInfo(EngineId(name), PeerId(name), node, role, 1 << 20, 1 << 22, b"")


def _scheduler(num_engines: int, index: BlockIndex) -> Scheduler:
    num_prefill = num_engines // 3
    limits = SchedulerConfig(alpha_tokens=1 << 22, beta_tokens=1 << 22, max_queued_requests=1 << 20)
    return Scheduler(
        prefill_engines=[IdlePrefill(_info(Role.PREFILL, i)) for i in range(num_prefill)],
        decode_engines=[IdleDecode(_info(Role.DECODE, i)) for i in range(num_engines - num_prefill)],
        index=index,
        store=MemoryStore("memory://scale", NAMESPACE.digest, GEOMETRY),
        namespace=NAMESPACE,
        model_name="idle",
        max_context_tokens=1 << 20,
        config=replace(limits, path_policy="split"),
        runtime=SystemRuntime(),
    )


@dataclass(frozen=True)
class Cost:
    request_s: float
    start_s: float
    rss_bytes: int


async def place_and_look_up(seat: Seat, number: int, prompt: tuple[int, ...], keys: tuple[BlockKey, ...]) -> None:
    """What a request's coordinator asks of the desk, and tells it."""
    request_id = RequestId(f"c{number}")
    placement = await seat.place(Demand(request_id, number, len(prompt), len(prompt) + 256))
    await seat.plan_reading(request_id, await seat.look_up(request_id, keys))
    await asyncio.sleep(0)
    for read in range(2):
        seat.read_ends(request_id, read)
    seat.reads_ended(request_id)
    seat.reading_over(request_id)
    for engine_id in (placement.prefill, placement.decode):
        await asyncio.sleep(0)
        seat.released(request_id, engine_id)


async def measure(num_engines: int, context: int, num_tokens: int | None, num_requests: int, *, profile: bool) -> Cost:
    """CPU seconds for each request; two agents for each node. ``num_tokens`` None: the central part alone."""
    index = BlockIndex(object_bytes(GEOMETRY))
    prompts = [tuple(range(agent, agent + context + NEW_TOKENS)) for agent in range(16)]
    chains = [tuple(chain_keys(root_key(NAMESPACE), prompt[:context], BLOCK_TOKENS)) for prompt in prompts]
    for chain in chains:
        parent = None
        for key in chain:
            index.begin_write(key, parent)
            index.publish(key)
            parent = key
    started_s = time.process_time()
    scheduler = _scheduler(num_engines, index)
    seat = scheduler.desk.seat()
    await scheduler.start()
    start_s = time.process_time() - started_s
    numbers = itertools.count()

    async def agent(prompt: tuple[int, ...], keys: tuple[BlockKey, ...], until: int) -> None:
        while (number := next(numbers)) < until:
            if num_tokens is None:
                await place_and_look_up(seat, number, prompt, keys)
                continue
            request = Request(RequestId(f"r{number}"), prompt, SamplingParams(max_tokens=num_tokens, seed=1))
            async for _ in scheduler.service.generate(request):
                pass

    async def run(until: int) -> None:
        num_agents = 2 * num_engines // ENGINES_PER_NODE
        kinds = itertools.islice(itertools.cycle(zip(prompts, chains, strict=True)), num_agents)
        await asyncio.gather(*(agent(*kind, until) for kind in kinds))

    await run(num_requests // 10)
    gc.collect()
    profiler = cProfile.Profile() if profile else None
    began_s, first = time.process_time(), next(numbers)
    if profiler is not None:
        profiler.enable()
    await run(first + num_requests)
    if profiler is not None:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
    cost_s = (time.process_time() - began_s) / num_requests
    await scheduler.close()
    return Cost(cost_s, start_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, nargs="+", default=[24, 144, 1152])
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 32768, 131072])
    parser.add_argument("--tokens", type=int, nargs="*", default=[2, 176], help="of each answer")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    print("engines  context  tokens  CPU a request    requests/s a core  start     RSS at most")
    for engines, context, tokens in itertools.product(args.engines, args.contexts, [None, *args.tokens]):
        done = measure(engines, context, tokens, args.requests, profile=args.profile)
        cost = asyncio.run(done)
        row = f"{engines:7} {context:8} {tokens or 'central':>7} {cost.request_s * 1e3:11.2f} ms"
        print(f"{row} {1 / cost.request_s:15.0f} {cost.start_s:10.1f} s {cost.rss_bytes / 2**20:10.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
