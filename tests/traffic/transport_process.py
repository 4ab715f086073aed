"""A transport in a process of its own that does nothing but what it is told, line by line, and moves nothing meanwhile.

Prints its metadata in hex and its memory's bytes are 0. Commands, each answered by one line: ``peer HEX``,
``progress ROUNDS``, ``serve`` (until the next line), ``remove PEER``, ``clear``, ``count VALUE`` (how many bytes have
that value).
"""

from __future__ import annotations

import select
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from dualpath.core.ids import PeerId
from dualpath.traffic.contract import Region
from dualpath.traffic.nixl_transport import NixlTransport

UNIT_BYTES = 1 << 20
NUM_UNITS = 48  # more than sockets hold


def make_region(value: int) -> Region:
    memory = torch.full((NUM_UNITS * UNIT_BYTES,), value, dtype=torch.uint8)
    return Region("staging", memory, UNIT_BYTES, memory.data_ptr() + np.arange(NUM_UNITS, dtype=np.int64) * UNIT_BYTES)


def main(name: str) -> None:
    transport, region = NixlTransport(PeerId(name), ("UCX",)), make_region(0)
    transport.register(region)
    print(transport.metadata().hex(), flush=True)
    while line := sys.stdin.readline():
        answer: object = "ok"
        match line.split():
            case ["peer", metadata]:
                transport.add_peer(bytes.fromhex(metadata))
            case ["progress", rounds]:
                for _ in range(int(rounds)):
                    transport.progress()
            case ["serve"]:
                print("ok", flush=True)
                while not select.select([sys.stdin], [], [], 0)[0]:
                    transport.progress()
                continue
            case ["remove", peer]:
                transport.remove_peer(PeerId(peer))
            case ["clear"]:
                region.storage.zero_()
            case ["count", value]:
                answer = int((region.storage == int(value)).sum())
        print(answer, flush=True)
    transport.close()


if __name__ == "__main__":
    main(sys.argv[1])
