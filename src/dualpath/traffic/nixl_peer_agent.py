"""One NIXL agent for one peer: all connections with it, both ways, so that destroying the agent ends them.

NIXL's own ``remove_remote_agent`` ends nothing: the connection stays, and what the peer sent or still sends is written
wherever it says. Destroying the agent closes its sockets with what is queued in them, in milliseconds, whatever the
peer does, and no other peer notices. It must go with every object that could keep the native agent alive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dualpath.core.errors import ConfigError, PeerLostError, TransferError
from dualpath.core.ids import PeerId
from dualpath.store.nixl_api import build_agent, nixl_api
from dualpath.traffic.contract import Op, Region, TransferState, Units
from dualpath.traffic.nixl_regions import RegionTable

BACKEND = "UCX"
_LAST_ROUNDS = 4  # UCX aborts the process over copies by CMA that were begun and never carried out
_OPERATIONS = {Op.PULL: "READ", Op.PUSH: "WRITE"}
_STATES = {"DONE": TransferState.DONE, "PROC": TransferState.IN_PROGRESS}


@dataclass(slots=True)
class Side:
    """Prepared descriptors of one region, ours or the peer's."""

    dlist: Any
    unit_bytes: int


class PeerAgent:
    """Every error is a TransferError or PeerLostError. Not thread-safe. ``name`` is never used again."""

    def __init__(
        self,
        name: str,
        peer: PeerId,
        regions: Sequence[tuple[Region, RegionTable]],
        params: Mapping[str, Mapping[str, str]],
    ) -> None:
        self._name, self._peer = name, peer
        try:
            self._agent = build_agent(name, (BACKEND,), params)
        except ConfigError as error:  # others were made before: what is missing now is descriptors, say
            raise TransferError(str(error)) from None
        self._registrations: dict[int, Any] = {}  # by address: regions may share an allocation
        self._transfers: set[Any] = set()
        self._remote_name: str | None = None
        self.remote: dict[str, Side] = {}
        self.own: dict[str, Side] = {}
        try:
            for region, table in regions:
                self.own[table.name] = self._register(region, table)
        except TransferError:
            self.destroy()
            raise

    def metadata(self) -> bytes:
        metadata: bytes = self._agent.get_agent_metadata()
        return metadata

    def connect(self, name: str, metadata: bytes) -> None:
        """With the agent that the peer has for us; with another one than before, instead of that."""
        self._disconnect()
        self._remote_name = name  # to be forgotten even where only half of it is learnt
        try:
            self._agent.add_remote_agent(metadata)
        except Exception as error:  # the binding's exceptions share no public base class
            raise self._explain(error) from None

    def connect_itself(self) -> None:
        """For copies through the NIC: NIXL needs no introduction."""
        self._remote_name = self._name

    def prepare(self, tables: Sequence[RegionTable]) -> None:
        """Make the peer's units usable. Once connected."""
        assert self._remote_name is not None
        try:
            self.remote = {table.name: self._side(self._remote_name, table) for table in tables}
        except Exception as error:
            raise self._explain(error) from None

    def start(self, op: Op, local: Side, local_units: Units, remote: Side, remote_units: Units) -> Any:
        """A transfer, not yet posted. Raises TransferError."""
        try:
            transfer = self._agent.make_prepped_xfer(
                _OPERATIONS[op], local.dlist, local_units, remote.dlist, remote_units
            )
        except Exception as error:
            raise self._explain(error) from None
        self._transfers.add(transfer)
        return transfer

    def post(self, transfer: Any) -> TransferState:
        return self._state_of(self._agent.transfer, transfer)

    def check(self, transfer: Any) -> TransferState:
        return self._state_of(self._agent.check_xfer_state, transfer)

    def release(self, transfer: Any) -> None:
        self._transfers.discard(transfer)
        _drop(transfer)

    def progress(self) -> None:
        self._agent.get_new_notifs()

    def destroy(self) -> None:
        """On return nothing moves through this agent any more, in our memory or out of it; waits for nobody."""
        for _ in range(_LAST_ROUNDS):
            with suppress(Exception):
                self.progress()
        while self._transfers:
            _drop(self._transfers.pop())
        self._disconnect()
        for side in self.own.values():
            _drop(side.dlist)
        for registration in self._registrations.values():
            with suppress(Exception):
                self._agent.deregister_memory(registration)
        self.own.clear()
        # The native agent goes here and now, whoever still holds the Python object around it, in a traceback say.
        self._agent.agent = None

    def _disconnect(self) -> None:
        for side in self.remote.values():
            _drop(side.dlist)
        self.remote.clear()
        if self._remote_name not in (None, self._name):
            with suppress(Exception):
                self._agent.remove_remote_agent(self._remote_name)
        self._remote_name = None

    def _register(self, region: Region, table: RegionTable) -> Side:
        storage = region.storage
        entry = (storage.data_ptr(), storage.numel(), table.device_id, "")
        try:
            if entry[0] not in self._registrations:
                registration = self._agent.register_memory([entry], table.memory_type, [BACKEND])
                self._registrations[entry[0]] = registration
        except Exception as error:
            raise TransferError(
                f"NIXL cannot register {storage.numel()} bytes of {table.memory_type}: {error!r}"
            ) from None
        return self._side("NIXL_INIT_AGENT", table)

    def _side(self, agent_name: str, table: RegionTable) -> Side:
        dlist = self._agent.prep_xfer_dlist(agent_name, table.rows(), table.memory_type, [BACKEND])
        return Side(dlist, table.unit_bytes)

    def _state_of(self, call: Any, transfer: Any) -> TransferState:
        try:
            status = call(transfer)
        except Exception as error:  # does not say that the transfer is at rest
            raise self._explain(error) from None
        if status not in _STATES:
            raise TransferError(f"NIXL reports {status}")
        return _STATES[status]

    def _explain(self, error: Exception) -> TransferError:
        lost = getattr(nixl_api().nixlBind, "nixlRemoteDisconnectError", None)
        if lost is not None and isinstance(error, lost):
            return PeerLostError(f"{self._peer} is gone")
        return TransferError(f"a transfer with {self._peer} failed: {error!r}")


def _drop(wrapper: Any) -> None:
    """Release a binding's object, and its hold on the native agent even where that fails."""
    with suppress(Exception):
        wrapper.release()
    wrapper._released, wrapper._agent = True, None
