"""Grammars and penalties on real engines: they hold for every draw, and no path, company, preemption or loss shows."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dualpath.cluster.embedded import EmbeddedCluster
from dualpath.core.errors import EngineLostError, InvalidRequestError, PreemptedError
from dualpath.core.ids import RequestId
from dualpath.core.request import Request, SamplingParams
from dualpath.models.init import init_model
from tests.e2e.cluster_kit import BLOCK_TOKENS, all_zero, ask, cluster, settings

EOS = 257
PROMPT = [32 + (i * 11 + i * i // 3) % 90 for i in range(3 * BLOCK_TOKENS + 5)]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"type": "integer", "minimum": -5, "maximum": 500},
        "kind": {"enum": ["file", "folder", None]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 3},
    },
    "required": ["name", "size", "kind", "tags"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
JSON = "start: %json " + json.dumps(SCHEMA)
SHAPES: dict[str, dict[str, Any]] = {
    "json": {"grammar": JSON},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": -0.3},
    "bias": {"logit_bias": ((101, 4.0), (102, -9.0)), "bad_words": ((97, 98), (104,)), "min_tokens": 30},
    "all": {"grammar": "start: /[a-z ]{30,60}/", "frequency_penalty": 0.5, "min_tokens": 40},
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model("qwen3", tmp_path_factory.mktemp("shaped") / "model", layers=2)


def shape_of(number: int) -> dict[str, Any]:
    shapes = list(SHAPES.values())
    sampling = {"temperature": 0.8, "top_p": 0.95} if number % 2 else {"temperature": 0.0}
    return {**shapes[number % len(shapes)], **sampling, "seed": number, "ignore_eos": False}


async def ask_disturbed(embedded: EmbeddedCluster, number: int, every: int) -> list[int]:
    """Preempted, or its engine taken for lost, after every few tokens."""
    params = SamplingParams(max_tokens=70, **shape_of(number))
    request = Request(RequestId(f"disturbed-{number}"), tuple(PROMPT), params)
    tokens = []
    async for event in embedded.service.generate(request):
        tokens.append(event.token_id)
        if len(tokens) % every == 0:
            error = PreemptedError("for a test") if len(tokens) % 2 else EngineLostError("for a test")
            for engine in embedded.decode_engines:
                for seq in list(engine._running_set):
                    if seq.request_id.startswith(request.request_id):
                        engine._end(seq, error)
    record = embedded.service.record(request.request_id)
    assert record is not None
    assert record.num_retries >= len(tokens) // every - 1
    return tokens


@pytest.mark.parametrize("temperature", [0.0, 0.7, 2.0])
async def test_every_output_fits_its_grammar(temperature, model_dir):
    async with cluster(settings(model_dir, f"memory://fits-{temperature}", decode=1)) as embedded:
        asked = [ask(embedded, PROMPT[i:], 300, grammar=JSON, temperature=temperature, seed=i) for i in range(8)]
        outputs = [reply.token_ids for reply in await asyncio.gather(*asked)]
        await all_zero(embedded)
    for output in outputs:
        assert output[-1] == EOS
        jsonschema.validate(json.loads(bytes(output[:-1])), SCHEMA)
    assert len({tuple(output) for output in outputs}) > 1


async def test_outputs_are_the_same_alone_in_company_on_every_path_and_after_losses(model_dir):
    answers: list[list[list[int]]] = []
    for path in ("prefill", "split"):
        async with cluster(settings(model_dir, f"memory://shaped-{path}", path=path)) as embedded:
            await ask(embedded, PROMPT, 2)
            answers.append([(await ask(embedded, PROMPT, 70, **shape_of(i))).token_ids for i in range(8)])
    async with cluster(settings(model_dir, "memory://shaped-losses")) as embedded:
        answers.append(list(await asyncio.gather(*(ask_disturbed(embedded, i, 19 + i) for i in range(8)))))
        await all_zero(embedded)
    assert answers[0] == answers[1] == answers[2]
    assert {len(answer) for answer in answers[0]} != {70}


async def test_the_block_that_an_end_of_sequence_completes_is_a_hit_of_the_next_turn(model_dir):
    """Its last row of KV is computed after the grammar has ended."""
    prompt = PROMPT[: 3 * BLOCK_TOKENS - 5]
    async with cluster(settings(model_dir, "memory://last-block", decode=1)) as embedded:
        answer = await ask(embedded, prompt, 20, grammar='start: "abcd"', ignore_eos=False)
        assert answer.token_ids == [*b"abcd", EOS]
        following = await ask(embedded, [*prompt, *answer.token_ids, 40, 41], 1)
        assert following.record.num_hit_tokens == 3 * BLOCK_TOKENS
        await all_zero(embedded)


async def test_a_grammar_that_cannot_be_used_is_the_requests_error(model_dir):
    async with cluster(settings(model_dir, "memory://no-grammar", decode=1)) as embedded:
        with pytest.raises(InvalidRequestError, match="grammar"):
            await ask(embedded, PROMPT, 10, grammar="start: /[/")
        await all_zero(embedded)
        assert len((await ask(embedded, PROMPT, 10)).token_ids) == 10
