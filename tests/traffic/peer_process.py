"""A decode engine in a process of its own, driven by lines on stdin: the far end of the cross-process tests.

Prints its metadata in hex, with every staging unit filled with its own number. Commands: ``peer <hex>``,
``expect``, ``sums`` (prints the first byte of every staging unit, or -1 where the unit's bytes differ), ``quit``.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.traffic.rig import DECODE, DECODE_PEER, GEOMETRY, Engine, make_engine, make_store

from dualpath.core.plan import Role
from dualpath.traffic.nixl_transport import NixlTransport


def sums(engine: Engine, slots: list[int]) -> str:
    units = np.concatenate([engine.payload(slot) for slot in slots])
    return " ".join(str(unit[0]) if np.all(unit == unit[0]) else "-1" for unit in units)


def main() -> None:
    engine = make_engine(DECODE, Role.DECODE, NixlTransport(DECODE_PEER), make_store("memory", Path()))
    slots = sorted(asyncio.run(engine.manager.slots.acquire(8)))
    for slot in slots:
        engine.payload(slot)[:] = (np.arange(GEOMETRY.num_layers) + slot * GEOMETRY.num_layers)[:, None]
    print(engine.manager.metadata().hex(), flush=True)
    expecting = ExitStack()
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "peer":
            engine.manager.add_peer(bytes.fromhex(arguments[0]))
        elif command == "expect":
            expecting.enter_context(engine.manager.expecting_peers())
        elif command == "sums":
            print(sums(engine, slots), flush=True)
            continue
        elif command == "quit":
            break
        print("ok", flush=True)
    expecting.close()
    engine.manager.close()


if __name__ == "__main__":
    main()
