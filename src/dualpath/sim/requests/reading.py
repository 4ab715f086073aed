"""Hits on their way from storage: staging memory on both sides first, then the read path, then the storage NICs."""

from __future__ import annotations

from dualpath.scheduler.policy import path_choice
from dualpath.scheduler.policy.path_choice import PathQuestion
from dualpath.scheduler.policy.systems import SystemPolicy
from dualpath.sim.engines.node import Node
from dualpath.sim.requests.request import Request


class Reader:
    """Steps 3 and 4 of a request's life: decode side first always, so two requests never wait for each other.

    Every method takes a request whose turn has come; True: its ``ready_s`` is known now, False: it waits for memory.
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

    def place(self, request: Request, now_s: float) -> bool:
        """It has its engines: ask for decode staging memory."""
        if self._skips_io:
            request.staged = 0
            request.reading_s = request.ready_s = now_s
            return True
        if self._reserves:
            wanted = self.prompt_tokens(request)
        else:
            self._plan(request, now_s)
            wanted = request.decode_hit
        request.staged = wanted
        if wanted and not request.decode.node.staging.take(request, wanted):
            return False
        return self.stage_decode(request, now_s)

    def prompt_tokens(self, request: Request) -> int:
        """Of a prompt's blocks."""
        return -(-request.prompt // self._block_tokens) * self._block_tokens

    def stage_decode(self, request: Request, now_s: float) -> bool:
        """It has decode staging memory: ask for prefill device memory, where that matters."""
        if self._reserves:
            self._plan(request, now_s)
        if self.reserves_whole and not request.prefill.kv.take(request, self.prompt_tokens(request)):
            return False
        return self.stage_prefill(request, now_s)

    def _plan(self, request: Request, now_s: float) -> None:
        """Choose the path as late as possible; from now on the shares are in the nodes' reading queues."""
        prefill_nic, decode_nic = request.prefill.node.snic, request.decode.node.snic
        block, rate, hit = self._block_tokens, self._rate, request.hit
        prefill_queue, decode_queue = prefill_nic.queue_tokens(now_s), decode_nic.queue_tokens(now_s)
        plan = self._path(PathQuestion(hit // block, block, prefill_queue, decode_queue, rate, rate, self._num_planned))
        if not hit:
            self.path_counts["none"] += 1
            return
        self._num_planned += 1
        request.prefill_hit = on_prefill = plan.num_prefill_blocks * block
        request.decode_hit = on_decode = hit - on_prefill
        prefill_nic.queued_tokens += on_prefill
        decode_nic.queued_tokens += on_decode
        self.path_counts["prefill" if not on_decode else "split" if on_prefill else "decode"] += 1

    def stage_prefill(self, request: Request, now_s: float) -> bool:
        """It has prefill device memory: ask for prefill staging memory."""
        on_prefill = request.prefill_hit
        if on_prefill and not request.prefill.node.staging.take(request, on_prefill):
            return False
        return self.read(request, now_s)

    def read(self, request: Request, now_s: float) -> bool:
        """It has all memory: read both shares."""
        ready_s = now_s
        request.reading_s = now_s
        request.prefill_staged = on_prefill = request.prefill_hit
        on_decode = request.decode_hit
        if on_prefill:
            ready_s = self._read_share("prefill", request.prefill.node, on_prefill, now_s)
        if on_decode:
            done_s = self._read_share("decode", request.decode.node, on_decode, now_s)
            if done_s > ready_s:
                ready_s = done_s
        request.ready_s = ready_s
        return True

    def _read_share(self, side: str, node: Node, num_tokens: int, now_s: float) -> float:
        """When it is in staging memory: from storage, and through the node's memory bus (``FifoLink.send``)."""
        num_bytes = num_tokens // self._block_tokens * self._block_bytes
        self.side_bytes[side] += num_bytes
        read_s = node.snic.read(now_s, num_bytes, num_tokens)
        dram = node.dram
        dram.num_bytes += num_bytes
        stored_s = (dram.free_at_s if dram.free_at_s > now_s else now_s) + num_bytes / dram.bytes_per_s
        dram.free_at_s = stored_s
        return read_s if read_s > stored_s else stored_s
