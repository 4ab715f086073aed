"""A node's process of a testbed, without a testbed: it ends without a word, whoever is still connected."""

from __future__ import annotations

import asyncio
import pickle
import signal
import sys
from pathlib import Path

from dualpath.cluster.free_ports import free_ports
from dualpath.config import ModelConfig, NodeConfig, ServeConfig, StoreConfig
from dualpath.core import handshake
from dualpath.testbed.rollout_node import NodeOrder

SECRET = b"s" * 32


async def test_a_connection_that_is_there_at_its_end_is_no_traceback(tmp_path: Path) -> None:
    config = ServeConfig(model=ModelConfig(dir=tmp_path), store=StoreConfig(url="memory://"))
    (port,) = free_ports(1, "127.0.0.1")
    order = NodeOrder(config, NodeConfig(name="de0", role="decode"), "127.0.0.1", port, SECRET)
    words = [sys.executable, "-m", "dualpath.testbed.rollout_node"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stderr=pipe)
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(order))
    process.stdin.close()
    for _ in range(600):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            break
        except ConnectionRefusedError:  # it imports what engines need
            await asyncio.sleep(0.05)
    await reader.readexactly(handshake.CHALLENGE_BYTES)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert "Traceback" not in (await process.stderr.read()).decode()
    assert await process.wait() == 0
    writer.close()
