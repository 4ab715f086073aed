"""Hits on their way from storage: staging memory on both sides first, then the read path, then the storage NICs."""

from __future__ import annotations

from dualpath.scheduler import path_choice
from dualpath.scheduler.path_choice import PathQuestion
from dualpath.scheduler.systems import SystemPolicy
from dualpath.sim.node import Node
from dualpath.sim.request import Request


class Reader:
    """Steps 3 and 4 of a request's life: decode side first always, so two requests never wait for each other.

    Every method takes requests whose turn has come and returns those whose ``ready_s`` is known with it.
    """

    def __init__(
        self, policy: SystemPolicy, reserves: bool, block_tokens: int, block_bytes: int, nic_rate: float
    ) -> None:
        self._path = path_choice.path_policy(policy.path)
        self._reserves = reserves  # decode staging memory for the whole prompt before anything is read
        self.reserves_whole = not policy.streams_layers  # prefill device memory for whole requests
        self._skips_io = policy.skips_io
        self._block_tokens = block_tokens
        self._block_bytes = block_bytes  # on storage
        self._rate = nic_rate
        self._num_planned = 0
        self.path_counts = {"none": 0, "prefill": 0, "decode": 0, "split": 0}
        self.side_bytes = {"prefill": 0, "decode": 0}

    def place(self, request: Request, now_s: float) -> list[Request]:
        """It has its engines: ask for decode staging memory."""
        if self._skips_io:
            request.staged = 0
            request.reading_s = request.ready_s = now_s
            return [request]
        if not self._reserves:
            self._plan(request, now_s)
        wanted = self.prompt_tokens(request) if self._reserves else request.decode_hit
        request.staged = wanted
        if wanted and not request.decode.node.staging.take(request, wanted):
            return []
        return self.stage_decode(request, now_s)

    def prompt_tokens(self, request: Request) -> int:
        """Of a prompt's blocks."""
        return -(-request.prompt // self._block_tokens) * self._block_tokens

    def stage_decode(self, request: Request, now_s: float) -> list[Request]:
        """It has decode staging memory: ask for prefill device memory, where that matters."""
        if self._reserves:
            self._plan(request, now_s)
        if self.reserves_whole and not request.prefill.kv.take(request, self.prompt_tokens(request)):
            return []
        return self.stage_prefill(request, now_s)

    def _plan(self, request: Request, now_s: float) -> None:
        """Choose the path as late as possible; from now on the shares are in the nodes' reading queues."""
        prefill, decode = request.prefill, request.decode
        prefill_nic, decode_nic = prefill.node.snic, decode.node.snic
        plan = self._path(
            PathQuestion(
                request.hit // self._block_tokens,
                self._block_tokens,
                prefill_nic.queue_tokens(now_s),
                decode_nic.queue_tokens(now_s),
                self._rate,
                self._rate,
                self._num_planned,
            )
        )
        if request.hit:
            self._num_planned += 1
            request.prefill_hit = plan.num_prefill_blocks * self._block_tokens
            request.decode_hit = request.hit - request.prefill_hit
            prefill_nic.queue(request.prefill_hit)
            decode_nic.queue(request.decode_hit)
        self.path_counts[plan.path] += 1

    def stage_prefill(self, request: Request, now_s: float) -> list[Request]:
        """It has prefill device memory: ask for prefill staging memory."""
        if request.prefill_hit and not request.prefill.node.staging.take(request, request.prefill_hit):
            return []
        return self.read(request, now_s)

    def read(self, request: Request, now_s: float) -> list[Request]:
        """It has all memory: read both shares."""
        request.reading_s = ready_s = now_s
        request.prefill_staged = request.prefill_hit
        prefill, decode = request.prefill, request.decode
        if request.prefill_hit:
            ready_s = self._read_share("prefill", prefill.node, request.prefill_hit, now_s)
        if request.decode_hit:
            ready_s = max(ready_s, self._read_share("decode", decode.node, request.decode_hit, now_s))
        request.ready_s = ready_s
        return [request]

    def _read_share(self, side: str, node: Node, num_tokens: int, now_s: float) -> float:
        num_bytes = num_tokens // self._block_tokens * self._block_bytes
        self.side_bytes[side] += num_bytes
        read_s = node.snic.read(now_s, num_bytes, num_tokens)
        stored_s = node.dram.send(now_s, num_bytes)
        return read_s if read_s > stored_s else stored_s
