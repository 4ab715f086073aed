"""How many nodes of each role a simulated cluster's present work would keep comfortably busy: what role_switch reads.

By Little's law, queues say it without rates: a prefill node is comfortable while what waits for its engines takes no
longer than the limit on the time to first token; a decode node, while no step is longer than the limit on the time
per token, and its memory holds the batch.
"""

from __future__ import annotations

from dualpath.core.plan import Role
from dualpath.sim.limits import request_s
from dualpath.sim.requests.request import Request
from dualpath.sim.simulation import Simulation


class DemandMeter:
    """``look`` several times, then ``take`` the means."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._prefill = self._decode = 0.0
        self._looks = 0
        self._prefill_node_s = simulation.spec.workload.ttft_slo_s * simulation.spec.cluster.engines_per_node

    def look(self) -> None:
        simulation = self._simulation
        blocked = set(map(id, simulation.placer.blocked))
        waiting_s, tokens, num_decoding = 0.0, 0, 0
        for agent in simulation.agents:
            request = agent.request
            if request is None:
                continue
            if request.handed_over_s >= 0 or id(request) in blocked:
                num_decoding += 1
                tokens += request.prompt + request.generate
            else:
                waiting_s += self._engine_s(request)
        self._prefill += waiting_s / self._prefill_node_s
        self._decode += self._decode_nodes(num_decoding, tokens)
        self._looks += 1

    def take(self) -> tuple[float, float]:
        """(prefill, decode) demand since the last time, in nodes."""
        looks = max(1, self._looks)
        found = (self._prefill / looks, self._decode / looks)
        self._prefill = self._decode = 0.0
        self._looks = 0
        return found

    def _engine_s(self, request: Request) -> float:
        """What is left of it for a prefill engine, in a forward as full as the quota allows."""
        return request_s(self._simulation.spec, self._simulation.cost, request.prompt, request.computed)

    def _decode_nodes(self, num_requests: int, num_tokens: int) -> float:
        """In nodes whose batches are as large as the limit and their memory allow."""
        if not num_requests:
            return 0.0
        simulation = self._simulation
        cost, shape, limit_s = simulation.cost, simulation.spec.cluster, simulation.spec.workload.tpot_slo_s
        mean_tokens = num_tokens / num_requests
        per_request_s = cost.decode.per_request_s + cost.decode.per_context_token_s * mean_tokens
        room_s = max(limit_s - cost.decode.base_s, per_request_s)
        by_time = room_s / per_request_s if per_request_s else float("inf")
        by_memory = shape.kv_bytes(Role.DECODE) / cost.kv_bytes_per_token / mean_tokens
        return num_requests / (max(1.0, min(by_time, by_memory)) * shape.engines_per_node)
