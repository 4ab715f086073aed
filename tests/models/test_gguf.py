"""A GGUF file becomes a model directory that computes what the file says; what is none is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dualpath.core.errors import ConfigError
from dualpath.models.gguf import import_gguf
from dualpath.models.load import load_model

LAYERS, HIDDEN, HEADS, KV_HEADS, WIDE = 2, 64, 4, 2, 96
TOKENS = [*map(chr, range(ord("a"), ord("z") + 1)), "<unk>", "<s>", "</s>", "ab", "abc"]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer: Any = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_context_length(512)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * 26 + [3] * 3 + [1] * 2)
    writer.add_token_merges(["a b", "ab c"])
    writer.add_bos_token_id(TOKENS.index("<s>"))
    writer.add_eos_token_id(TOKENS.index("</s>"))
    writer.add_chat_template(TEMPLATE)
    source = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, source.standard_normal(shape, dtype=np.float32) / shape[-1] ** 0.5)

    add("token_embd.weight", len(TOKENS), HIDDEN)
    add("output.weight", len(TOKENS), HIDDEN)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, dtype=np.float32))
    for layer in range(LAYERS):
        head = HIDDEN // HEADS
        add(f"blk.{layer}.attn_q.weight", HIDDEN, HIDDEN)
        add(f"blk.{layer}.attn_k.weight", KV_HEADS * head, HIDDEN)
        add(f"blk.{layer}.attn_v.weight", KV_HEADS * head, HIDDEN)
        add(f"blk.{layer}.attn_output.weight", HIDDEN, HIDDEN)
        add(f"blk.{layer}.ffn_gate.weight", WIDE, HIDDEN)
        add(f"blk.{layer}.ffn_up.weight", WIDE, HIDDEN)
        add(f"blk.{layer}.ffn_down.weight", HIDDEN, WIDE)
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(HIDDEN, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_computes_what_transformers_computes_of_the_file(file: Path, tmp_path: Path) -> None:
    made = import_gguf(file, tmp_path / "made")
    prompt = torch.tensor([[0, 3, 5, 29, 7, 11]])
    of_file = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    of_made = AutoModelForCausalLM.from_pretrained(made)
    assert torch.equal(of_file(prompt).logits, of_made(prompt).logits)
    load_model(made, dtype="auto", device="cpu")  # ours takes it too
    assert (made / "chat_template.jinja").read_text() == TEMPLATE


def test_an_empty_directory_will_do_and_a_full_one_will_not(file: Path, tmp_path: Path) -> None:
    import_gguf(file, tmp_path, dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype is torch.bfloat16
    with pytest.raises(ConfigError, match="exists and is not an empty directory"):
        import_gguf(file, tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "no such file"), (b"", "is no GGUF file"), (b"GGUF" + bytes(60), "cannot read it")]
)
def test_what_is_none_is_refused_and_nothing_is_left(content: bytes | None, reason: str, tmp_path: Path) -> None:
    source = tmp_path / "in"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        import_gguf(source, tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else ["in"])
