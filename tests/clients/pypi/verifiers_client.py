"""verifiers, with which prime-rl rolls out: its train client (token ids in and out), and its relay of all three APIs.

A trajectory's next turn must hit what the one before has stored.
"""

import asyncio
import json
import os
import urllib.request
from pathlib import Path

from renderers.configs import DefaultRendererConfig
from verifiers.v1.clients import resolve_client
from verifiers.v1.configs.client import EvalClientConfig, TrainClientConfig
from verifiers.v1.dialects import DIALECTS, AnthropicDialect, ChatDialect, ResponsesDialect
from verifiers.v1.types import SamplingConfig

URL = os.environ["DUALPATH_URL"]
MODEL_DIR = os.environ["DUALPATH_MODEL_DIR"]
MODEL = Path(MODEL_DIR).name
NUM_TOKENS = 24
BLOCK_TOKENS = 64
SAMPLING = SamplingConfig(
    max_tokens=NUM_TOKENS,
    temperature=1.0,
    top_k=-1,
    repetition_penalty=1.0,
    cache_salt="step-1",
    routed_experts_prompt_start=3,  # it always asks for that where it can go on from tokens; nothing here knows it
)
ENDPOINT = {"base_url": URL + "/v1", "api_key_var": "NO_KEY"}


def newest_hits() -> int:
    with urllib.request.urlopen(f"{URL}/v1/dualpath/requests?limit=1") as answer:
        return json.load(answer)["data"][0]["num_hit_tokens"]


async def train() -> None:
    renderer = DefaultRendererConfig(tool_parser="qwen3")
    client = resolve_client(TrainClientConfig(**ENDPOINT, renderer=renderer, renderer_model_name=MODEL_DIR))
    messages = [{"role": "system", "content": "Be brief. " * 40}, {"role": "user", "content": "Say hello."}]
    num_before = 0
    for _ in range(3):
        body = {"model": MODEL, "messages": messages}
        response = await client.get_response(ChatDialect(), body, SAMPLING, session_id="t-1")
        tokens = response.tokens
        assert response.finish_reason == "length"
        assert len(tokens.completion_ids) == len(tokens.completion_logprobs) == NUM_TOKENS
        assert all(value <= 0 for value in tokens.completion_logprobs)
        assert newest_hits() >= num_before - BLOCK_TOKENS
        num_before = len(tokens.prompt_ids)
        messages += [response.raw["choices"][0]["message"], {"role": "user", "content": "Go on. " * 20}]
    await client.close()


async def relay() -> None:
    client = resolve_client(EvalClientConfig(**ENDPOINT))
    ask = [{"role": "user", "content": "hi"}]
    bodies = {
        ChatDialect: {"model": MODEL, "messages": ask, "max_tokens": NUM_TOKENS},
        ResponsesDialect: {"model": MODEL, "input": ask, "max_output_tokens": NUM_TOKENS},
        AnthropicDialect: {"model": MODEL, "messages": ask, "max_tokens": NUM_TOKENS},
    }
    for dialect in DIALECTS:
        body = bodies[type(dialect)]
        whole = await client.get_response(dialect, body, SamplingConfig(), session_id="t-2")
        assert (whole.finish_reason, whole.usage.completion_tokens) == ("length", NUM_TOKENS), dialect
        reply, parser = await client.relay(dialect, body | {"stream": True}), dialect.stream_parser()
        async for event in reply.chunks:
            parser.feed(event)
        assert parser.finish().finish_reason == "length", dialect
        await reply.close()
    counted = await client.relay_aux(AnthropicDialect(), "/v1/messages/count_tokens", {"model": MODEL, "messages": ask})
    assert counted["input_tokens"] > 0
    await client.close()


async def main() -> None:
    await train()
    await relay()


asyncio.run(main())
