"""A process that takes the place of ``python -m vllm.entrypoints.openai.api_server``: a fake server and its fake node.

``FAKE_VLLM`` in the environment: "broken" ends at once with an error, "without" is a Python that has no vLLM, "cuda"
one that sees a device. ``FAKE_VLLM_STEP_S``: how long a token takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from dataclasses import replace
from typing import Any

import uvicorn
from tests.scheduler.fakes import FakeStorage
from tests.scheduler.fixtures import NAMESPACE
from tests.vllm.fake_nodes import DecodeNode, PrefillNode, Worker
from tests.vllm.fake_server import MAX_MODEL_LEN, FakeVllm

from dualpath.core.handshake import read_secret
from dualpath.core.ids import PeerId, peer_id
from dualpath.protocol import wire
from dualpath.protocol.host import EngineServer, Served
from dualpath.protocol.socket_channel import NodeServer
from dualpath.vllm.line import DecodeNodeLine, PrefillNodeLine
from dualpath.vllm.settings import ConnectorSettings, read_settings


class Process:
    """Behind the control line."""

    def __init__(self, node: Any, line: type) -> None:
        self._node, self._server = node, EngineServer({node.info.engine_id: Served(node, line)})
        self._incarnation = str(os.getpid())

    async def open(self, session: str) -> bytes:
        held = await self._server.open(session)
        report = wire.NodeReport(NAMESPACE, "m", MAX_MODEL_LEN, (self._node.info,), b"", "h", os.getpid())
        return wire.encode(wire.Opened(self._incarnation, (), None, report, held))

    async def send(self, session: str, batch: bytes) -> None:
        self._server.receive(session, batch)

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        return await self._server.poll(session, max_wait_s)


class FarPrefillNode(PrefillNode):
    """Decode engines are in other processes: what is pushed arrives."""

    def decode_of(self, peer: PeerId) -> Any:
        return None

    async def _move(self, order: Any) -> None:
        assert order.decode_peer in self.peers


def node_of(settings: ConnectorSettings) -> tuple[Any, type]:
    node: Any
    if settings.role == "prefill":
        node, line = FarPrefillNode(settings.engine_id, FakeStorage(), {}), PrefillNodeLine
    else:
        node, line = DecodeNode(settings.engine_id, FakeStorage()), DecodeNodeLine
        node.lossy_release = True
    peer = peer_id(node.info.engine_id, str(os.getpid()))
    node.info = replace(node.info, peer_id=peer, peer_metadata=peer.encode(), node_id=settings.node_id)
    node.worker = Worker()
    return node, line


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--kv-transfer-config", type=json.loads)
    known, _ = parser.parse_known_args(sys.argv[1:])
    settings = read_settings(known.kv_transfer_config["kv_connector_extra_config"])
    node, line = node_of(settings)
    lines = NodeServer(Process(node, line), read_secret(os.environ))
    await lines.start(settings.host, settings.port)
    step_s = float(os.environ.get("FAKE_VLLM_STEP_S", "0"))
    app = FakeVllm(node.worker, settings.role == "prefill", step_s=step_s).app()
    await uvicorn.Server(uvicorn.Config(app, known.host, known.port, log_level="critical", lifespan="off")).serve()


if __name__ == "__main__":
    kind = os.environ.get("FAKE_VLLM", "")
    if sys.argv[1] == "-c":
        missing = ["vllm", "nixl"] if kind == "without" else []
        num_devices = int(kind == "cuda")
        print(json.dumps({"missing": missing, "python": [3, 11], "version": "0.32.0", "num_devices": num_devices}))
    elif kind == "broken":
        why = "DualPath cannot serve this: a block of 3 tokens"
        print(f"INFO loading\nConfigError: {why}")
        print(f"RuntimeError: Worker failed with error '{why}', please check the stack trace above for the root cause")
        print("some more")
        sys.exit(1)
    else:
        asyncio.run(main())
