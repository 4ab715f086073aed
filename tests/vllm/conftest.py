"""A model, plain vLLM's answers, and a pair of servers: once for all tests marked ``vllm``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vllm.live import ANSWER_TOKENS, Turn, VllmPair, ask_oracle, new_tokens, running
from tests.vllm.servers import PYTHON_VARIABLE, make_model, vllm_python

FIRST_TOKENS = (700, 1300)  # of each conversation's first prompt; blocks have 128
NUM_TURNS = 6
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if vllm_python() is None:
        skip = pytest.mark.skip(reason=f"make test-vllm runs it, or name a Python with vLLM in {PYTHON_VARIABLE}")
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def vllm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("vllm") / "model")


@pytest.fixture(scope="session")
def talks(vllm_model: Path) -> list[list[Turn]]:
    """Two conversations as plain vLLM holds them."""
    asked = []
    for seed, num_tokens in enumerate(FIRST_TOKENS):
        turns = [{"tokens": new_tokens(seed, num_tokens), "num_tokens": ANSWER_TOKENS}]
        for turn in range(1, NUM_TURNS):
            turns.append({"tokens": new_tokens(100 * turn + seed, 40), "num_tokens": 40})
        asked.append(turns)
    return ask_oracle(vllm_model, asked)


@pytest.fixture(scope="session")
def pair(vllm_model: Path, talks: list[list[Turn]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmPair]:
    """``talks`` first: there is not memory for three servers everywhere."""
    options = {  # prompts come in chunks; five prompts fill the decode server's KV before they have been answered
        "prefill": ("--max-num-batched-tokens", "512", *TOOLS),
        "decode": ("--num-gpu-blocks-override", "34", *TOOLS),
    }
    yield from running(VllmPair(vllm_model, tmp_path_factory.mktemp("vllm") / "pair", options=options))
