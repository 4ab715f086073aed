"""The contract of a channel: three questions to one node's process, whatever carries them."""

from __future__ import annotations

from typing import Protocol


class Process(Protocol):
    """At the channel's far end: ``cluster.node_process.NodeProcess``. What it raises is the caller's to judge."""

    async def open(self, session: str) -> bytes:
        """Begin a session: all calls of former ones are ended first. Returns an encoded ``Opened``."""
        ...

    async def send(self, session: str, batch: bytes) -> None:
        """Hand over a batch of ``ToNode``. The link sends one at a time, so they arrive in order."""
        ...

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        """The next batch of ``ToScheduler``, after at most ``max_wait_s`` an empty one: also the sign of life."""
        ...


class Channel(Process, Protocol):
    """The process as its scheduler reaches it. Every call may also never answer: the link has its own deadlines.

    Raises EngineGoneError where the process is known to have ended, EngineSilentError where it is there and does not
    answer, and anything else where nobody can tell. A call that failed may or may not have been carried out.
    """

    def end_process(self) -> None:
        """Have the process killed, because it has been silent for too long; its successor answers ``open``."""
        ...
