"""The processes that run a model together: how they meet, what the leader tells them, and how KV rows go between them.

Commands travel through torch's key-value store, where a process may wait for hours; within a forward everything is a
collective. Both are class MODEL: the interface is GLOO_SOCKET_IFNAME's or NCCL_SOCKET_IFNAME's. The store is on the
leader's loopback; from other hosts a ``Door`` leads there. Collectives ask nobody: their network must be isolated.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dualpath.core.errors import ConfigError, EngineLostError
from dualpath.models.parallel.door import Door, WayIn
from dualpath.models.parallel.interfaces import use_interface_of

LEADER = 0
_LOOPBACK = "127.0.0.1"
_LEAVE_S = 5.0  # for followers from elsewhere to hear the last command
_IDLE_WAIT = timedelta(hours=1)  # then look again, and torch logs it; a leader that is gone shows at once


class LeaderGoneError(EngineLostError):
    """There is nobody to follow any more."""


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A process's place. ``port`` 0: the leader takes a free one. Without ``secret`` all are on this host."""

    rank: int
    world: int
    host: str
    port: int
    timeout_s: float = 300.0  # of one collective; the leader may wait for KV between two of them
    secret: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank: must be 0 to {self.world - 1}, not {self.rank}")


class ProcessGroup:
    """There can be one in a process, as torch.distributed has one default group. One thread at a time."""

    def __init__(self, membership: GroupMember) -> None:
        """Leader: listen; follower: connect. Returns before the others are there. Raises ConfigError."""
        if dist.is_initialized():
            raise ConfigError(
                "a process can run one tensor-parallel model: give every prefill engine a node of its own"
            )
        self.rank, self.world = membership.rank, membership.world
        self._timeout = timedelta(seconds=membership.timeout_s)
        self._num_commands = 0
        self._door: Door | WayIn | None = None
        if self.rank == LEADER:
            self._store = _open_store(self._timeout, _listen())
            if membership.secret is not None:
                self._door = Door(membership.host, membership.port, membership.secret, self._store.port)
        else:
            port = membership.port
            if membership.secret is not None:
                self._door = WayIn(membership.host, port, membership.secret, membership.timeout_s)
                port = self._door.port
            self._store = _open_store(self._timeout, None, port)
        if membership.secret is not None:
            use_interface_of(membership.host, membership.port if self.rank != LEADER else 0)

    @property
    def port(self) -> int:
        """Where followers go."""
        port: int = self._store.port if self._door is None else self._door.port
        return port

    def meet(self, device_type: str) -> None:
        """Wait for all. Raises EngineLostError."""
        try:
            dist.init_process_group(
                "nccl" if device_type == "cuda" else "gloo",
                store=dist.PrefixStore("group", self._store),  # type: ignore[attr-defined]
                rank=self.rank,
                world_size=self.world,
                timeout=self._timeout,
            )
        except RuntimeError as error:
            raise EngineLostError(
                f"rank {self.rank} of {self.world}: the others did not come: {one_line(error)}"
            ) from None

    def command(self, payload: bytes) -> None:
        """Leader: what all followers do next."""
        self._store.set(f"command/{self._num_commands}", payload)
        self._num_commands += 1

    def forget_command(self) -> None:
        """Leader: all have it, even of a forward given up at its first layer: the embedding before is a collective."""
        self._store.delete_key(f"command/{self._num_commands - 1}")

    def next_command(self) -> bytes:
        """Follower: wait for it. Raises LeaderGoneError."""
        key = f"command/{self._num_commands}"
        while True:
            try:
                self._store.wait([key], _IDLE_WAIT)
                payload: bytes = self._store.get(key)
            except dist.DistStoreError:
                continue  # nothing to do yet
            except RuntimeError as error:
                raise LeaderGoneError(f"the leader is gone: {one_line(error)}") from None
            self._num_commands += 1
            return payload

    def tell(self, is_good: bool, device: torch.device) -> bool:
        """Everyone: the leader's word, whatever the others pass."""
        flag = torch.tensor([int(is_good)], dtype=torch.uint8, device=device)
        dist.broadcast(flag, LEADER)
        return bool(flag.item())

    def scatter(self, own: torch.Tensor, parts: Sequence[torch.Tensor] | None) -> None:
        """Everyone: the leader's ``parts[rank]`` into ``own``."""
        dist.scatter(own, None if parts is None else list(parts), src=LEADER)

    def gather(self, own: torch.Tensor) -> list[torch.Tensor]:
        """Everyone: each rank's ``own``, in order, at the leader; nothing elsewhere."""
        parts = [torch.empty_like(own) for _ in range(self.world)] if self.rank == LEADER else None
        dist.gather(own, parts, dst=LEADER)
        return parts or []

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
        if isinstance(self._door, Door):
            self._door.close(_LEAVE_S)
        self._store = None
        if isinstance(self._door, WayIn):
            self._door.close()


def _listen() -> socket.socket:
    """torch alone would listen on every interface, whatever host it is told."""
    return socket.create_server((_LOOPBACK, 0))


def _open_store(timeout: timedelta, listener: socket.socket | None, port: int = 0) -> Any:
    """The leader's with a listener, which the store then owns; else a follower's. Raises ConfigError."""
    if listener is not None:
        port = listener.getsockname()[1]
    try:
        return dist.TCPStore(  # type: ignore[attr-defined]
            _LOOPBACK,
            port,
            None,
            is_master=listener is not None,
            timeout=timeout,
            wait_for_workers=False,
            master_listen_fd=None if listener is None else listener.detach(),
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot meet the others at {_LOOPBACK}:{port}: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
