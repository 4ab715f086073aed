"""Random models must be worth testing with: lively, attentive to all of their context, reproducible, and loadable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualpath.core.errors import ConfigError
from dualpath.models.fingerprint import fingerprint_model_dir
from dualpath.models.init import FAMILIES, init_model
from dualpath.models.init_config import INDEX_TOPK, SLIDING_WINDOW
from dualpath.models.init_tokenizer import EOS_ID, PAD_ID, byte_tokenizer

PROMPTS = ["hello world", "The quick brown fox jumps", "def main():\n", "0123456789 " * 3]
NEW_TOKENS = 48
NASTY_TEXT = (
    "plain\r\n\t \x00\x01\x7f don't 1234  é e\u0301 日本 😀👩‍👩‍👧 \u2028\ufffd <tool_call>{}</tool_call> <tools>"
)

TOOLS = [{"type": "function", "function": {"name": "look", "description": "Sieht <nach>", "parameters": {}}}]
AGENT_MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "You are an agent."},
    {"role": "user", "content": "What is there?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at":"é"}'}},  # as on the wire
            {"id": "2", "type": "function", "function": {"name": "look", "arguments": {"at": "x"}}},
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "a sea"},
    {"role": "tool", "tool_call_id": "2", "content": "a ship"},
    {"role": "assistant", "content": "A ship at sea."},
    {"role": "user", "content": "Thanks."},
    {
        "role": "assistant",
        "content": "Again:",
        "tool_calls": [{"id": "3", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "3", "content": "fog"},
]


@pytest.fixture(scope="module", params=FAMILIES)
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(request.param, tmp_path_factory.mktemp("init") / request.param)


def greedy(model: Any, text: str) -> list[int]:
    prompt = torch.tensor([list(text.encode())])
    output = model.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
    return [int(token) for token in output[0, prompt.shape[1] :]]


def test_greedy_text_varies_and_does_not_end(model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    outputs = [greedy(model, text) for text in PROMPTS]
    distinct = [len(set(tokens)) for tokens in outputs]
    assert min(distinct) >= 8, distinct
    assert sum(distinct) / len(distinct) >= 16, distinct
    assert len({tuple(tokens[:16]) for tokens in outputs}) == len(PROMPTS)
    assert all(token == 0x0A or 0x20 <= token < 0x7F for tokens in outputs for token in tokens)  # so no eos either
    assert all(len(tokens) == NEW_TOKENS for tokens in outputs)


def test_logits_depend_on_early_context(model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    # A window of 128 reaches 100 back in one layer, and about 300 through three of them.
    distance = 250 if model.config.model_type == "mistral" else 500
    ids = torch.randint(32, 127, (1, 600), generator=torch.Generator().manual_seed(1))
    changed = ids.repeat(8, 1)
    for row, back in enumerate(range(distance, distance + 8)):
        position = ids.shape[1] - 1 - back
        changed[row, position] = 32 + (changed[row, position] - 32 + 40) % 95
    with torch.no_grad():
        last = model(ids, logits_to_keep=1).logits[0, -1]
        others = [model(row[None], logits_to_keep=1).logits[0, -1] for row in changed]
    differences = sorted(float((other - last).abs().max()) for other in others)
    assert differences[4] > 0.2, differences  # the median; logits have a std of 3 and rounding errors of 3e-5
    assert differences[1] > 0.02, differences


def test_features_that_tests_rely_on(model_dir: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text())
    assert config["model_type"] == model_dir.name
    assert config["eos_token_id"] == EOS_ID
    assert config["dtype"] == "float32"
    if config["model_type"] in ("mistral", "gpt_oss"):
        assert config["sliding_window"] == SLIDING_WINDOW
    if config["model_type"] == "gpt_oss":
        assert set(config["layer_types"]) == {"sliding_attention", "full_attention"}
        sinks = AutoModelForCausalLM.from_pretrained(model_dir).model.layers[0].self_attn.sinks
        assert float(sinks.detach().abs().min()) > 0
    if config["model_type"] == "deepseek_v32":
        assert config["index_topk"] == INDEX_TOPK
        assert config["index_n_heads"] >= 32


def test_tokenizer_loads_and_keeps_text(model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    # transformers forces qwen2 to a class that composes accents (NFC) first.
    text = NASTY_TEXT.replace("e\u0301", "é") if model_dir.name == "qwen2" else NASTY_TEXT
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (EOS_ID, PAD_ID, None)
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|im_start|>user\nhi<|im_end|>\n"


def test_every_byte_is_a_token_and_decodes_alone() -> None:
    tokenizer = byte_tokenizer(1024)
    assert all(tokenizer.convert_ids_to_tokens(byte) for byte in range(256))
    smile = list("😀".encode())
    partial = [tokenizer.decode(smile[:n]) for n in range(1, 5)]
    assert all("\ufffd" in text for text in partial[:3])
    assert partial[3] == "😀"
    assert tokenizer.decode([104, 105, EOS_ID], skip_special_tokens=True) == "hi"
    assert tokenizer.decode([104, 105, EOS_ID]) == "hi<|im_end|>"


def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, *, prompt: bool = False) -> str:
    template = byte_tokenizer(1024).apply_chat_template
    text = template(messages, tools=tools, add_generation_prompt=prompt, tokenize=False)  # type: ignore[arg-type]
    assert isinstance(text, str)
    return text


def test_chat_template_renders_chatml() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat: list[dict[str, Any]] = [{"role": "system", "content": "Be <brief>."}, {"role": "user", "content": parts}]
    assert render(chat, prompt=True) == (
        "<|im_start|>system\nBe <brief>.<|im_end|>\n<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chat_template_renders_tools() -> None:
    signature = json.dumps(TOOLS[0], ensure_ascii=False)
    system: dict[str, Any] = {"role": "system", "content": "Be brief."}
    user: dict[str, Any] = {"role": "user", "content": "hi"}
    for messages in ([user], [system, user]):
        text = render(messages, TOOLS)
        assert text.count("<|im_start|>system\n") == 1
        assert f"<tools>\n{signature}\n</tools>" in text
        assert text.endswith("</tool_call><|im_end|>\n<|im_start|>user\nhi<|im_end|>\n")
    text = render(AGENT_MESSAGES, TOOLS)
    assert '<|im_start|>assistant\n<tool_call>\n{"name": "look", "arguments": {"at":"é"}}\n</tool_call>\n' in text
    assert '</tool_call>\n<tool_call>\n{"name": "look", "arguments": {"at": "x"}}\n</tool_call><|im_end|>' in text
    assert "<|im_start|>user\n<tool_response>\na sea\n</tool_response><|im_end|>\n" in text


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_chat_template_is_append_only(tools: list[dict[str, Any]] | None) -> None:
    """Each conversation begins with the shorter one's prompt and the reply to it, so cached KV is found again."""
    for count in range(1, len(AGENT_MESSAGES)):
        before, after = render(AGENT_MESSAGES[:count], tools), render(AGENT_MESSAGES[: count + 1], tools)
        assert after.startswith(before)
        reply = AGENT_MESSAGES[count]
        if reply["role"] == "assistant":
            prompt = render(AGENT_MESSAGES[:count], tools, prompt=True)
            assert after.startswith(prompt + (reply["content"] or "<tool_call>"))
            assert after.endswith("<|im_end|>\n")


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first = init_model("qwen3", tmp_path / "a", seed=5, layers=2)
    torch.manual_seed(99)  # the global generator plays no part
    same = init_model("qwen3", tmp_path / "b", seed=5, layers=2)
    other = init_model("qwen3", tmp_path / "c", seed=6, layers=2)
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in same.iterdir()}
    assert fingerprint_model_dir(first) == fingerprint_model_dir(same) != fingerprint_model_dir(other)


def test_dtype_and_dimensions_are_kept(tmp_path: Path) -> None:
    path = init_model(
        "llama",
        tmp_path / "m",
        layers=1,
        hidden=64,
        heads=2,
        kv_heads=1,
        head_dim=16,
        dtype="bfloat16",
        rms_norm_eps=1e-5,
    )
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.dtype == torch.bfloat16
    assert model.config.rms_norm_eps == 1e-5
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (16, 64)


def test_demo_preset_is_big_enough_to_show_transfers(tmp_path: Path) -> None:
    path = init_model("llama", tmp_path / "demo", preset="demo")
    config = json.loads((path / "config.json").read_text())
    kv_bytes = 2 * 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    assert kv_bytes == 32 * 1024
    assert (path / "model.safetensors").stat().st_size < 200_000_000


@pytest.mark.parametrize(
    "arguments",
    [
        {"family": "gpt2"},
        {"preset": "huge"},
        {"dtype": "int8"},
        {"layers": 0},
        {"heads": 3},
        {"head_dim": 30},
        {"vocab_size": 100},
        {"hiden_size": 64},
        {"family": "qwen2", "head_dim": 64},
        {"rope_parameters": "yes"},
    ],
)
def test_bad_arguments_are_one_clear_line(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        init_model(**{"family": "llama", "out_dir": tmp_path / "m", **arguments})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        init_model("llama", tmp_path)
    with pytest.raises(ConfigError, match="not a directory"):
        init_model("llama", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
