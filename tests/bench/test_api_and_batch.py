"""The cluster as a Python object, and a file of requests answered without a server."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import dualpath
from dualpath.cli.main import main
from dualpath.core.errors import ConfigError, DualPathError, InvalidRequestError
from dualpath.core.request import FinishReason

SETTINGS = {
    "prefill": 1,
    "decode": 2,
    "block_tokens": 16,
    "threads_per_engine": 1,
    "max_context_tokens": 1024,
    "prefill_staging_bytes": 32 << 20,
    "decode_staging_bytes": 32 << 20,
    "decode_kv_tokens": 8192,
}
FLAGS = [text for name, value in SETTINGS.items() for text in ("--" + name.replace("_", "-"), str(value))]


def test_importing_the_package_stays_light():
    program = "import sys, dualpath; print('torch' in sys.modules, 'fastapi' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


async def test_agents_run_tools_between_completions_and_statistics_add_up(tiny_model_dir):
    async def agent(session: dualpath.serving.api.Session) -> str:
        first = await session.complete(f"agent {session.agent}: " + "look at the file " * 8, 8, temperature=0.0)
        second = await session.complete([*first.prompt_token_ids, *first.token_ids, 65, 66], 8, num_logprobs=0, seed=1)
        assert second.logprobs is not None
        assert all(value <= 0 for value in second.logprobs)
        return second.text

    async def broken(session: dualpath.serving.api.Session) -> None:
        await session.complete("x", 1)
        raise RuntimeError("the tool failed")

    async with dualpath.Cluster(model=tiny_model_dir("llama"), store="memory://api", **SETTINGS) as cluster:
        rollout = await cluster.rollout([agent] * 3, max_concurrent=2)
        mixed = await cluster.rollout([agent, broken], raise_errors=False)
        with pytest.raises(RuntimeError, match="the tool failed"):
            await cluster.rollout([broken])
        with pytest.raises(InvalidRequestError, match="unexpected keyword argument 'best_of'"):
            await cluster.complete("x", 1, best_of=2)
        with pytest.raises(InvalidRequestError, match="temperature must be between 0 and 2, not -1"):
            await cluster.complete("x", 1, temperature=-1)
        with pytest.raises(InvalidRequestError, match="max_tokens"):
            await cluster.complete("x", 0)
        tiny = await cluster.complete("x", 4, temperature=1e-310)
        assert tiny.token_ids == (await cluster.complete("x", 4, temperature=0.0)).token_ids
        with pytest.raises(InvalidRequestError, match="outside the vocabulary"):
            await cluster.complete([10_000], 1)
    found = rollout.statistics()
    assert found["requests"] == 6
    assert found["failed_agents"] == 0
    assert found["generated_tokens"] == sum(len(a.token_ids) for r in rollout.results for a in r.completions)
    assert found["hit_tokens"] > 0, "the second turn finds the first one's blocks"
    assert {answer.finish_reason for r in rollout.results for answer in r.completions} <= set(FinishReason)
    assert isinstance(rollout.results[0].value, str)
    assert isinstance(mixed.results[1].error, RuntimeError)
    assert mixed.statistics()["failed_agents"] == 1


def test_a_full_disk_is_named_and_is_no_bug(tiny_model_dir, tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text(line("one", max_tokens=1) + "\n")
    arguments = ["batch", str(source), "/dev/full", "--model", str(tiny_model_dir("llama")), "--store", "memory://full"]
    assert main([*arguments, *FLAGS]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "dualpath: error: /dev/full: No space left on device"


def test_a_setting_that_there_is_not_is_refused(tiny_model_dir):
    with pytest.raises(ConfigError, match="no setting 'decoders'"):
        dualpath.Cluster(model=tiny_model_dir("llama"), decoders=2)
    with pytest.raises(ConfigError, match="--system oracle gives invalid answers"):
        dualpath.Cluster(model=tiny_model_dir("llama"), system="oracle")
    with pytest.raises(DualPathError, match="has not been started"):
        _ = dualpath.Cluster(model=tiny_model_dir("llama")).tokenizer


def line(custom_id: str, url: str = "/v1/completions", **body: object) -> str:
    body = {"prompt": "hello", "max_tokens": 4, "temperature": 0} | body
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


def test_a_batch_comes_back_in_order_with_every_error_in_its_line(tiny_model_dir, tmp_path, capsys):
    chat = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions"}
    chat["body"] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    lines = [
        line("long", max_tokens=40, ignore_eos=True),
        line("short", max_tokens=1),
        json.dumps(chat),
        line("wrong", max_tokens=-1),
        line("elsewhere", url="/v1/embeddings"),
        line("streamed", stream=True),
        "{not json",
        line("short"),
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines) + "\n")
    arguments = [
        "batch",
        str(source),
        str(target),
        "--model",
        str(tiny_model_dir("llama")),
        "--store",
        "memory://batch",
    ]
    assert main([*arguments, *FLAGS]) == 0
    assert "8 requests, 5 failed" in capsys.readouterr().out
    answers = [json.loads(text) for text in target.read_text().splitlines()]
    assert [one["custom_id"] for one in answers] == ["long", "short", "c", "wrong", "elsewhere", "streamed", None, None]
    assert [(one["response"] or {}).get("status_code") for one in answers] == [200, 200, 200, 400, 404, 400, None, None]
    assert answers[0]["response"]["body"]["usage"]["completion_tokens"] == 40
    assert answers[2]["response"]["body"]["object"] == "chat.completion"
    assert answers[3]["response"]["body"]["error"]["param"] == "max_tokens"
    assert all(one["error"]["code"] == "invalid_line" for one in answers[6:])
    assert len({one["id"] for one in answers}) == len(answers)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ([], "/no/in.jsonl: no such file"),
        (["--max-concurrent", "0"], "--max-concurrent: must be between 1 and 1024"),
        (["--decode", "0"], "--decode: must be at least 1"),
        (["--system", "oracle"], "--system oracle gives invalid answers; --allow-invalid-answers true allows them"),
    ],
)
def test_a_bad_batch_is_one_line_and_exit_code_2(extra, reason, tiny_model_dir, capsys):
    arguments = ["batch", "/no/in.jsonl", "/tmp/out.jsonl", "--model", str(tiny_model_dir("llama"))]
    assert main([*arguments, "--store", "memory://", *extra]) == 2
    assert capsys.readouterr().err.startswith(f"dualpath: error: {reason}")
