"""How two transports meet: small messages between their main agents, by which each learns the other's agent for it.

Metadata that is handed out is the same for all peers, but each peer gets an agent of its own. So whoever adds a peer
says hello with the agent made for it, and is answered with the peer's. No memory is registered with the main agents.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from dualpath.core.errors import PeerLostError
from dualpath.core.ids import PeerId
from dualpath.store.nixl_api import Agent

_log = logging.getLogger(__name__)


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """``number`` grows with every agent that the sender makes; ``agent`` empty: the one of that number is no more."""

    main_agent: bytes  # metadata, for the answer
    number: int
    agent: bytes = b""
    seen: int = 0  # number of the receiver's agent that this one is connected with


_encode = msgspec.msgpack.Encoder().encode
_hellos = msgspec.msgpack.Decoder(Hello)


class HelloChannel:
    """Messages arrive once and in order, or not at all where a connection breaks: whoever waits says hello again."""

    def __init__(self, agent: Agent, peer_id: PeerId) -> None:
        self._agent: Any = agent
        self._peer_id = peer_id
        self._connected: set[PeerId] = set()

    def say(self, peer: PeerId, main_agent: bytes, number: int, agent: bytes, seen: int) -> None:
        """Raises PeerLostError where the peer cannot be reached."""
        text = self._text(number, agent, seen)
        if self._send(peer, text):
            return
        try:
            self._agent.add_remote_agent(main_agent)
        except Exception as error:  # the binding's exceptions share no public base class
            raise PeerLostError(f"NIXL cannot reach {peer}: {error!r}") from None
        self._connected.add(peer)
        if not self._send(peer, text):
            raise PeerLostError(f"{peer} is gone")

    def say_disconnected(self, peer: PeerId, number: int) -> None:
        """If there is a connection; makes none."""
        self._send(peer, self._text(number, b"", 0))

    def hear(self) -> list[tuple[PeerId, Hello]]:
        """What peers have said; strangers' nonsense is logged and dropped."""
        heard = []
        for sender, texts in self._agent.get_new_notifs().items():
            name = sender.decode() if isinstance(sender, bytes) else sender
            for text in texts:
                try:
                    heard.append((PeerId(name), _hellos.decode(text)))
                except msgspec.DecodeError:
                    _log.warning("%s: no hello from %s, but %d other bytes", self._peer_id, name, len(text))
        return heard

    def close(self) -> None:
        self._agent = None

    def _text(self, number: int, agent: bytes, seen: int) -> bytes:
        return _encode(Hello(self._agent.get_agent_metadata(), number, agent, seen))

    def _send(self, peer: PeerId, text: bytes) -> bool:
        if peer not in self._connected:
            return False
        try:
            self._agent.send_notif(peer, text)
        except Exception:  # broken: the next one makes a new connection
            self._connected.discard(peer)
            try:
                self._agent.remove_remote_agent(peer)
            except Exception as error:
                _log.debug("forgetting the connection with %s: %r", peer, error)
            return False
        return True
