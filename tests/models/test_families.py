"""Every family, six turns, three conversations at once: greedy tokens equal transformers' own ``generate()``."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.models.little_engine import Conversation, LittleEngine
from transformers import AutoModelForCausalLM, PreTrainedModel

from dualpath.models.families import SUPPORTED_FAMILIES
from dualpath.models.seam import Model

TURNS = 6
NUM_GENERATED = 6


@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
def test_conversations_equal_generate(
    family: str, model_of: Callable[[str], Model], model_dir_of: Callable[[str], Path]
) -> None:
    model = model_of(family)
    reference = AutoModelForCausalLM.from_pretrained(model_dir_of(family), dtype=torch.float32).eval()
    engine = LittleEngine(model, block_tokens=32)
    draw = random.Random(7)
    conversations = [Conversation() for _ in range(3)]
    seen: set[int] = set()
    for turn in range(TURNS):
        new = [[draw.randrange(32, 127) for _ in range(draw.randrange(5, 90))] for _ in conversations]
        prompts = [c.tokens + tokens for c, tokens in zip(conversations, new, strict=True)]
        generated = engine.turn(conversations, new, NUM_GENERATED)
        for prompt, tokens in zip(prompts, generated, strict=True):
            assert tokens == _generate(reference, prompt), f"turn {turn}, {len(prompt)} tokens"
            seen.update(tokens)
    assert len(seen) > 10, "a model that says the same thing always would prove nothing"
    assert max(len(c.tokens) for c in conversations) > 2 * 128, "longer than windows and than sparse selections"


@torch.inference_mode()
def _generate(reference: PreTrainedModel, prompt: list[int]) -> list[int]:
    output = reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones((1, len(prompt)), dtype=torch.int64),
        max_new_tokens=NUM_GENERATED,
        min_new_tokens=NUM_GENERATED,
        do_sample=False,
    )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("num_new", [20, 80])  # latent attention absorbs few queries and expands for many
def test_few_tokens_on_a_long_history(
    family: str,
    num_new: int,
    model_of: Callable[[str], Model],
    model_dir_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dualpath.models.mla.EXPAND_ROWS", 250)  # history is expanded in parts
    reference = AutoModelForCausalLM.from_pretrained(model_dir_of(family), dtype=torch.float32).eval()
    engine = LittleEngine(model_of(family))
    draw = random.Random(9)
    conversation = Conversation([draw.randrange(32, 127) for _ in range(800 - num_new)])
    _, (rows,) = engine.prefill([conversation])
    conversation.tokens.extend(draw.randrange(32, 127) for _ in range(num_new))
    logits, _ = engine.prefill([conversation], [rows])
    with torch.inference_mode():
        right = reference(torch.tensor([conversation.tokens]), logits_to_keep=1).logits[0]
    torch.testing.assert_close(logits, right, atol=5e-4, rtol=0)
