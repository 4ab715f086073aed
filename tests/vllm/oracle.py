"""Plain vLLM with prefix caching, turn 1 and then turn 2: what DualPath must answer. A program for vLLM's environment.

``oracle.py MODEL``, questions as JSON on stdin, answers as JSON on stdout in a line behind ``ANSWERS``: vLLM
prints there, too.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

MAX_MODEL_LEN = 4096


def main() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the spy looks into this process
    import torch
    import xxhash
    from tests.vllm import spy_connector
    from vllm.config import KVTransferConfig

    from vllm import LLM, SamplingParams, TokensPrompt

    model, asked = sys.argv[1], json.load(sys.stdin)
    llm = LLM(
        model,
        dtype=asked["dtype"],
        enforce_eager=True,
        enable_prefix_caching=True,
        kv_cache_memory_bytes=128 << 20,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=8,
        max_num_batched_tokens=512,  # as the prefill server of the tests: forwards of one shape, KV of the same bits
        kv_transfer_config=KVTransferConfig(
            kv_connector="SpyConnector", kv_connector_module_path="tests.vllm.spy_connector", kv_role="kv_both"
        ),
        seed=0,
    )

    def answer(tokens: list[int], num_tokens: int) -> list[int]:
        params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True, detokenize=False)
        (result,) = llm.generate([TokensPrompt(prompt_token_ids=tokens)], params, use_tqdm=False)
        return list(result.outputs[0].token_ids)

    def digests(num_tokens: int) -> list[list[int]]:
        """[block][layer], of the whole blocks of the answer that has just ended: its last token has no KV yet."""
        block_tokens = spy_connector.kv_caches[0].shape[2]
        blocks = spy_connector.ended[-1][: (num_tokens - 1) // block_tokens]
        return [[_digest(layer[block]) for layer in spy_connector.kv_caches] for block in blocks]

    def _digest(layer_block: torch.Tensor) -> int:
        return xxhash.xxh3_64_intdigest(layer_block.contiguous().view(torch.uint8).numpy().tobytes())

    conversations: list[dict[str, Any]] = []
    for conversation in asked["conversations"]:
        tokens, turns = [], []
        for turn in conversation:
            tokens = [*tokens, *turn["tokens"]]
            out = answer(tokens, turn["num_tokens"])
            turns.append({"prompt": tokens, "answer": out, "digests": digests(len(tokens) + len(out))})
            tokens = [*tokens, *out]
        conversations.append({"turns": turns})
    print("\nANSWERS " + json.dumps(conversations), flush=True)


if __name__ == "__main__":
    main()
