"""A file store with I/O over it that leaves nothing open and nothing half-written behind."""

from __future__ import annotations

import gc
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tests.store.blocks import OBJECT_BYTES, Bench

from dualpath.core.runtime import SystemRuntime
from dualpath.store.contract import IoState, IoTicket
from dualpath.store.files.plain_io import PlainFileIo
from dualpath.store.files.store import FileStore
from dualpath.store.files.transfers import FileIo
from dualpath.store.nixl_api import build_agent

NUM_SLOTS = 48
_names = itertools.count()


def num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def open_bench(store: FileStore, params: Any = None, num_hung: int = 0, *, is_plain: bool = False) -> Iterator[Bench]:
    """``num_hung``: how many files may still be open at the end, since calls hang that concern them."""
    agent, runtime = build_agent(f"files-test-{next(_names)}", params=params), SystemRuntime()
    if is_plain:
        io: Any = PlainFileIo(store, agent.name, runtime)
    else:
        io = FileIo(store, agent, runtime, max_open=20, doubt_s=0.05)
    staging = torch.zeros((NUM_SLOTS, OBJECT_BYTES), dtype=torch.uint8)
    agent.register_memory(staging, backends=["POSIX"])
    gc.collect()  # what earlier tests left to be closed
    num_before = num_open_files()
    yield Bench(store, io, staging, agent)
    io.close()
    assert num_open_files() <= num_before + num_hung, "descriptors leak"
    assert is_plain or io.num_open_files() <= num_hung
    assert num_hung or list(Path(store.url.removeprefix("file://")).rglob("*.tmp.*")) == [], "temporaries leak"


def until_moving(bench: Bench, tickets: Sequence[IoTicket]) -> None:
    """Their files are open, their transfers posted."""
    end_s = time.monotonic() + 5.0
    while not all(ticket.handle for ticket in tickets):  # type: ignore[attr-defined]
        assert [bench.io.poll(ticket) for ticket in tickets] == [IoState.IN_PROGRESS] * len(tickets)
        assert time.monotonic() < end_s
