"""Log probabilities of a prompt: those of transformers' own forward, in pieces and packed with others, hits or none."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dualpath.core.ids import RequestId
from dualpath.core.request import Request, SamplingParams, TokenEvent
from dualpath.engine import prefill
from dualpath.models.init import init_model
from tests.e2e.cluster_kit import BLOCK_TOKENS, all_zero, ask, cluster, settings

PROMPTS = [
    [32 + (i * 11 + seed * 7 + i * i // 3) % 90 for i in range(length)] for seed, length in enumerate((75, 1, 40))
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model("llama", tmp_path_factory.mktemp("logprobs") / "model", layers=2)


async def first_event(embedded, number: int, prompt: list[int], num: int | None) -> TokenEvent:
    params = SamplingParams(max_tokens=3, temperature=0.0, num_prompt_logprobs=num, num_logprobs=num)
    request = Request(RequestId(f"p{number}"), tuple(prompt), params)
    events = [event async for event in embedded.service.generate(request)]
    assert all(event.prompt_logprobs is None for event in events[1:])
    return events[0]


@pytest.mark.parametrize("max_logits_bytes", [1 << 28, 4 * 264 * 16], ids=["at once", "16 at a time"])
async def test_they_are_those_of_the_whole_forward(model_dir, monkeypatch, max_logits_bytes):
    monkeypatch.setattr(prefill, "_MAX_LOGITS_BYTES", max_logits_bytes)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    async with cluster(settings(model_dir, f"memory://logprobs-{max_logits_bytes}", decode=1)) as embedded:
        await ask(embedded, PROMPTS[0], 4)  # hits, which have no logits
        await all_zero(embedded)
        asked = [(first_event(embedded, i, prompt, 2)) for i, prompt in enumerate(PROMPTS)]
        plain = first_event(embedded, 9, PROMPTS[0], None)
        *events, other = await asyncio.gather(*asked, plain)
        again = await ask(embedded, PROMPTS[0], 4)
        await all_zero(embedded)
    assert other.prompt_logprobs is None
    assert again.record.num_hit_tokens == len(PROMPTS[0]) // BLOCK_TOKENS * BLOCK_TOKENS
    for prompt, event in zip(PROMPTS, events, strict=True):
        with torch.inference_mode():
            truth = torch.log_softmax(model(torch.tensor([prompt])).logits[0], dim=-1)
        assert event.prompt_logprobs is not None
        assert len(event.prompt_logprobs) == len(prompt) - 1
        for i, (value, top, rank) in enumerate(event.prompt_logprobs):
            assert value == pytest.approx(truth[i, prompt[i + 1]].item(), abs=1e-3)
            assert truth[i].sort(descending=True).values[rank - 1].item() == pytest.approx(value, abs=1e-3)
            best = truth[i].topk(2)
            assert list(top) == best.indices.tolist()
            assert list(top.values()) == pytest.approx(best.values.tolist(), abs=1e-3)
        assert event.rank == 1
        assert event.logprob == pytest.approx(truth[-1].max().item(), abs=1e-3)


async def test_a_resumed_request_tells_them_once(model_dir):
    """They come with the first token; an attempt after it is not asked for them again, and may use hits."""
    from dualpath.core.errors import PreemptedError

    async with cluster(settings(model_dir, "memory://logprobs-again", decode=1)) as embedded:
        params = SamplingParams(max_tokens=40, temperature=0.0, num_prompt_logprobs=0, ignore_eos=True)
        request = Request(RequestId("resumed"), tuple(PROMPTS[0]), params)
        events = []
        async for event in embedded.service.generate(request):
            events.append(event)
            if len(events) == 10:
                for seq in list(embedded.decode_engines[0]._running_set):
                    embedded.decode_engines[0]._end(seq, PreemptedError("for a test"))
        whole = await ask(embedded, PROMPTS[0], 40)
    assert [event.token_id for event in events] == whole.token_ids
    assert [event.prompt_logprobs is not None for event in events] == [True] + [False] * 39
    record = replace(whole.record)
    assert record.num_hit_tokens > 0
