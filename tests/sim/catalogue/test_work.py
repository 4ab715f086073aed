"""KV bytes and prefill FLOPs: against values worked out by hand and against summing token by token."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath.core.errors import ConfigError
from dualpath.sim.catalogue.attention import GroupedQuery, Indexer, Latent
from dualpath.sim.catalogue.convention import PHYSICAL, TABLE_1, Convention, LatentForm, WindowedKv, all_conventions
from dualpath.sim.catalogue.find import find_model
from dualpath.sim.catalogue.flops import prefill_flops
from dualpath.sim.catalogue.kv import kv_bytes, kv_bytes_per_token, kv_row_bytes
from dualpath.sim.catalogue.models import MODELS
from dualpath.sim.catalogue.shape import FeedForward, ModelShape

EXPANDED = dataclasses.replace(PHYSICAL, latent_form=LatentForm.EXPANDED)


@pytest.mark.parametrize(
    ("name", "dtype", "convention", "expected"),
    [
        ("Qwen2.5-32B", "fp16", PHYSICAL, 64 * 2 * 8 * 128 * 2),
        ("Qwen3-235B-A22B", "fp8", PHYSICAL, 94 * 2 * 4 * 128),
        ("GPT-OSS-120B", "fp8", TABLE_1, 18 * 2 * 8 * 64),
        ("GPT-OSS-120B", "fp8", PHYSICAL, 36 * 2 * 8 * 64),
        ("Llama-3.3-70B", "bf16", PHYSICAL, 80 * 2 * 8 * 128 * 2),
        ("GLM-4.6", "bf16", PHYSICAL, 92 * 2 * 8 * 128 * 2),
        ("DeepSeek-V3", "fp8", PHYSICAL, 61 * (512 + 16 + 128)),
        ("DeepSeek-V3", "bf16", PHYSICAL, 61 * 576 * 2),
        ("DeepSeek-V3.2", "fp8", PHYSICAL, 61 * (656 + 132)),
        ("DeepSeek-V3.2", "fp8", TABLE_1, 61 * 656),
        ("DeepSeek-V3.2", "bf16", PHYSICAL, 61 * (1152 + 132)),
        ("DS-27B", "fp8", PHYSICAL, 30 * (656 + 64 + 4)),
    ],
)
def test_kv_bytes_per_token(name: str, dtype: str, convention: Convention, expected: int) -> None:
    assert kv_bytes_per_token(find_model(name).shape, dtype, convention) == expected


def test_windowed_layers_need_their_window_only() -> None:
    model = find_model("GPT-OSS-120B").shape
    row = kv_row_bytes(model, "fp8")
    loaded = {kind: kv_bytes(model, "fp8", 1000, Convention(windowed_kv=kind)) for kind in WindowedKv}
    assert loaded == {
        WindowedKv.NONE: 18 * 1000 * row,
        WindowedKv.WINDOW: 18 * (1000 + 128) * row,
        WindowedKv.STORED: 36 * 1000 * row,
    }
    assert kv_bytes(model, "fp8", 100, Convention(windowed_kv=WindowedKv.WINDOW)) == 36 * 100 * row


def test_an_unknown_kv_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match="kv_dtype must be one of bf16, fp16, fp8, not 'int4'"):
        kv_bytes_per_token(find_model("DeepSeek-V3").shape, "int4")


def test_grouped_query_flops_by_hand() -> None:
    flops = prefill_flops(find_model("Qwen2.5-32B").shape, 16384, 429)
    attention, ffn = 64 * 5120 * (40 + 16 + 40) * 128, 64 * 3 * 5120 * 27648
    assert flops.projections == 2 * attention * 429
    assert flops.ffn == 2 * ffn * 429
    assert flops.head == 2 * 152064 * 5120
    assert flops.pairs == pytest.approx(4 * 40 * 128 * 64 * 429 * (16384 + 214.5))
    assert flops.index_pairs == flops.expansion == 0


def test_sparse_latent_flops_by_hand() -> None:
    flops = prefill_flops(find_model("DeepSeek-V3.2").shape, 16384, 429)
    assert flops.pairs == 61 * 2 * 128 * (576 + 512) * 2048 * 429
    assert flops.index_pairs == pytest.approx(61 * 2 * 64 * 128 * 429 * (16384 + 214.5))
    active_ffn = 3 * 3 * 7168 * 18432 + 58 * (9 * 3 * 7168 * 2048 + 7168 * 256)
    assert flops.ffn == 2 * active_ffn * 429


def test_latent_attention_expands_or_absorbs() -> None:
    model = find_model("DeepSeek-V3").shape
    absorbed, expanded = prefill_flops(model, 1000, 10), prefill_flops(model, 1000, 10, EXPANDED)
    assert absorbed.pairs == 61 * 2 * 128 * (576 + 512) * 10 * 1005
    assert expanded.pairs == 61 * 2 * 128 * (192 + 128) * 10 * 1005
    assert expanded.expansion == 61 * 2 * 512 * 128 * (128 + 128) * 1000
    assert dataclasses.replace(expanded, pairs=absorbed.pairs, expansion=0.0) == absorbed


def test_conventions_change_what_they_say_and_nothing_else() -> None:
    model = find_model("DeepSeek-V3.2").shape
    plain = prefill_flops(model, 5000, 100)
    assert prefill_flops(model, 5000, 100, dataclasses.replace(PHYSICAL, every_logit=True)) == dataclasses.replace(
        plain, head=100 * plain.head
    )
    without = prefill_flops(model, 5000, 100, dataclasses.replace(PHYSICAL, rotary_scores=False))
    assert without == dataclasses.replace(plain, pairs=plain.pairs * 1024 / 1088)
    assert len(set(all_conventions())) == len(list(all_conventions())) == 48


def test_a_prefill_needs_something_new() -> None:
    model = find_model("Qwen2.5-32B").shape
    for cached, new in ((10, 0), (-1, 5)):
        with pytest.raises(ValueError, match="num_new >= 1"):
            prefill_flops(model, cached, new)


# Token by token: query x of the new ones sees cached + x tokens and half of itself, as the pair count of the scheduler.
gqa = st.builds(GroupedQuery, heads=st.integers(1, 9), kv_heads=st.just(1), head_dim=st.integers(1, 9))
indexers = st.none() | st.builds(Indexer, heads=st.integers(1, 4), head_dim=st.integers(1, 4), top_k=st.integers(1, 60))
latents = st.builds(
    Latent,
    heads=st.integers(1, 4),
    latent_dim=st.integers(1, 9),
    rope_dim=st.integers(1, 9),
    nope_dim=st.integers(1, 9),
    value_dim=st.integers(1, 9),
    query_rank=st.none() | st.integers(1, 9),
    indexer=indexers,
)


def integral_of_keys(position: int, cap: int | None) -> float:
    """Of min(x, cap) for x from position to position + 1; cap is a whole number, so it is never crossed inside."""
    return position + 0.5 if cap is None or position < cap else cap


@given(gqa | latents, st.integers(0, 3), st.integers(1, 50), st.integers(0, 80), st.integers(1, 40))
def test_prefill_flops_are_the_sum_over_tokens_and_layers(
    attention: GroupedQuery | Latent, windowed: int, window: int, cached: int, new: int
) -> None:
    ffn = FeedForward(1, 5, 3, 7, 6, 2, 11)
    windowed = windowed if isinstance(attention, GroupedQuery) else 0
    model = ModelShape("m", "test", 8, 13, 4, attention, ffn, windowed, window)
    indexer = model.indexer
    total = index = 0.0
    if isinstance(attention, GroupedQuery):
        per_pair = 2 * attention.heads * (attention.head_dim + attention.head_dim)
    else:
        score, value = attention.latent_dim + attention.rope_dim, attention.latent_dim
        per_pair = 2 * attention.heads * (score + value)
    for layer in range(4):
        for position in range(cached, cached + new):
            cap = window if layer < windowed else None if indexer is None else indexer.top_k
            total += per_pair * integral_of_keys(position, cap)
            index += 0 if indexer is None else 2 * indexer.heads * indexer.head_dim * (position + 0.5)
    flops = prefill_flops(model, cached, new)
    assert flops.pairs == pytest.approx(total)
    assert flops.index_pairs == pytest.approx(index)
    per_token = 3 * 8 * 5 + 3 * (3 * 8 * 11 + 8 * 6 + 2 * 3 * 8 * 7)
    assert flops.ffn == 2 * per_token * new


@pytest.mark.parametrize("name", MODELS)
@given(st.integers(0, 100_000), st.integers(1, 5000), st.integers(1, 5000))
def test_work_in_two_chunks_is_work_in_one(name: str, cached: int, first: int, second: int) -> None:
    """Chunking a prefill changes no work but the logits of the chunk's last token."""
    model = find_model(name).shape
    whole = prefill_flops(model, cached, first + second)
    parts = prefill_flops(model, cached, first), prefill_flops(model, cached + first, second)
    for part in ("projections", "pairs", "index_pairs", "ffn"):
        assert getattr(whole, part) == pytest.approx(sum(getattr(one, part) for one in parts))
