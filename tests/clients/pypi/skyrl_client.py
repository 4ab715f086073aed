"""skyrl: its own inference client: token ids in and out, sessions, pauses with requests that run, cache resets."""

import asyncio
import os
import typing

import aiohttp
import typing_extensions

typing.TypedDict = typing_extensions.TypedDict  # its models are pydantic's, which asks for this below Python 3.12

from skyrl.backends.skyrl_train.inference_servers.remote_inference_client import RemoteInferenceClient  # noqa: E402

URL = os.environ["DUALPATH_URL"]
SAMPLING = {  # what its generator sends by default
    "min_tokens": 1,
    "skip_special_tokens": True,
    "include_stop_str_in_output": True,
    "max_tokens": 32,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "logprobs": 1,
    "stop": None,
}


async def model_name() -> str:
    async with aiohttp.ClientSession() as http, http.get(f"{URL}/v1/models") as answer:
        return (await answer.json())["data"][0]["id"]


async def main() -> None:
    client = RemoteInferenceClient(URL, [URL], data_parallel_size=1, model_name=await model_name())
    (ids,) = await client.tokenize(["Say hello to everybody."])
    assert (await client.detokenize([ids])) == ["Say hello to everybody."]
    batch = {
        "prompt_token_ids": [ids, ids + ids],
        "sampling_params": SAMPLING,
        "session_ids": ["t-0", "t-1"],
        "cache_salt": "0",
    }
    output = await client.generate(batch)
    assert len(output["response_ids"]) == 2
    assert all(reason in ("stop", "length") for reason in output["stop_reasons"])
    for tokens, logprobs, text in zip(
        output["response_ids"], output["response_logprobs"], output["responses"], strict=True
    ):
        assert 1 <= len(tokens) == len(logprobs) <= 32
        assert all(one <= 0 for one in logprobs)
        assert (await client.detokenize([tokens])) == [text]
    for mode in ("keep", "wait", "abort"):
        await client.pause(mode)
        later = asyncio.create_task(client.generate(batch))
        await asyncio.sleep(0.3)
        assert not later.done(), f"it was served in a pause ({mode})"
        await client.resume()
        assert all(reason in ("stop", "length") for reason in (await later)["stop_reasons"])
    await client.reset_prefix_cache()
    await client.reset_prefix_cache(reset_running_requests=True)
    await client.finish_session("t-0")
    await client.aclose()


asyncio.run(main())
