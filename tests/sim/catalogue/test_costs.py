"""Costs from data sheets: prefill agrees with its FLOPs, decode with bytes and bandwidth; models fit or are refused."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath.core.errors import ConfigError
from dualpath.sim.catalogue.config import shape_from_config
from dualpath.sim.catalogue.convention import PHYSICAL, LatentForm
from dualpath.sim.catalogue.costs import BEST_KERNELS, Efficiency, decode_cost, model_cost, prefill_cost
from dualpath.sim.catalogue.find import find_model
from dualpath.sim.catalogue.flops import prefill_flops
from dualpath.sim.catalogue.gpus import GPUS, find_gpu
from dualpath.sim.catalogue.models import MODELS
from dualpath.sim.catalogue.nics import NICS
from dualpath.sim.catalogue.weights import free_hbm_bytes, weight_bytes

H800 = find_gpu("h800")
HALF = Efficiency(linear=0.5, pairs=0.25, index=0.4, hbm=0.8)


@pytest.mark.parametrize("name", MODELS)
@given(cached=st.integers(128, 200_000), new=st.integers(1, 4000))
def test_a_forward_takes_its_flops_at_the_stated_rates(name: str, cached: int, new: int) -> None:
    model = find_model(name).shape
    cost = prefill_cost(model, H800, HALF, base_s=0.1)
    flops = prefill_flops(model, cached, new)
    linear = H800.flops_per_s(H800.compute_dtype(model.linear_dtype)) * 0.5
    experts = H800.flops_per_s(H800.compute_dtype(model.expert_dtype)) * 0.5
    dense = 2.0 * new * model.ffn.dense_params(model.hidden)
    expected = 0.1 + (flops.projections + dense) / linear + (flops.ffn - dense) / experts
    expected += flops.pairs / (989.5e12 * 0.25) + flops.index_pairs / (1979e12 * 0.4)
    assert cost.forward_s([[(cached, new)]]) == pytest.approx(expected)


def test_a_model_with_windows_everywhere_is_capped_at_the_window() -> None:
    config = dict(MODELS["Llama-3.3-70B"].config) | {"model_type": "mistral", "sliding_window": 4096}
    model = shape_from_config(config, "windowed", "test")
    cost = prefill_cost(model, H800)
    assert cost.top_k == 4096
    for cached in (0, 3000, 50_000):
        expected = prefill_flops(model, cached, 2000).pairs / (989.5e12 * BEST_KERNELS.pairs)
        assert cost.attention_s([(cached, 2000)]) - cost.token_s * 2000 == pytest.approx(expected)


def test_logits_for_every_token_are_each_gpus_own() -> None:
    model = find_model("Qwen2.5-32B").shape
    every = prefill_cost(model, H800, HALF, convention=dataclasses.replace(PHYSICAL, every_logit=True))
    more_s = every.token_s - prefill_cost(model, H800, HALF).token_s
    assert more_s == pytest.approx(2 * 152064 * 5120 / (989.5e12 * 0.5))


def test_expanded_attention_has_no_simulated_cost() -> None:
    expanded = dataclasses.replace(PHYSICAL, latent_form=LatentForm.EXPANDED)
    with pytest.raises(ConfigError, match="latent_form"):
        prefill_cost(find_model("DeepSeek-V3").shape, H800, convention=expanded)


def test_a_dense_decode_step_reads_weights_and_kv() -> None:
    model = find_model("Llama-3.3-70B").shape
    cost = decode_cost(model, H800, HALF, kv_dtype="bf16", ffn_gpus=8, base_s=0.001)
    bandwidth = 3.35e12 * 0.8
    attention = 2 * 80 * (8192 * (64 + 16) * 128 + 64 * 128 * 8192)
    ffn = 2 * 80 * 3 * 8192 * 28672
    assert cost.base_s == pytest.approx(0.001 + (attention + 2 * 128256 * 8192 + ffn / 8) / bandwidth)
    pairs_s = 80 * 4 * 64 * 128 / (989.5e12 * 0.25)
    assert cost.per_context_token_s == pytest.approx(80 * 4096 / bandwidth + pairs_s)
    assert cost.per_request_s == pytest.approx(2 * model.active_params / (989.5e12 * 0.5))


def test_a_sparse_decode_step_reads_the_index_of_all_and_the_rows_of_top_k() -> None:
    cost = decode_cost(find_model("DeepSeek-V3.2").shape, H800, HALF, kv_dtype="fp8", ffn_gpus=32)
    bandwidth, pair_rate = 3.35e12 * 0.8, 989.5e12 * 0.25
    assert cost.per_context_token_s == pytest.approx(61 * (132 / bandwidth + 2 * 64 * 128 / (1979e12 * 0.4)))
    row_s = 656 / bandwidth + 2 * 128 * 1088 / pair_rate
    active_s = 2 * find_model("DeepSeek-V3.2").shape.active_params / (1979e12 * 0.5)
    assert cost.per_request_s == pytest.approx(active_s + 2048 * 61 * row_s)


def test_windowed_layers_cost_a_request_not_its_context() -> None:
    cost = decode_cost(find_model("GPT-OSS-120B").shape, H800, HALF, kv_dtype="fp8", ffn_gpus=1)
    row_s = 2 * 8 * 64 / (3.35e12 * 0.8) + 4 * 64 * 64 / (989.5e12 * 0.25)
    assert cost.per_context_token_s == pytest.approx(18 * row_s)
    active_s = 2 * find_model("GPT-OSS-120B").shape.active_params / (989.5e12 * 0.5)  # no FP4 on Hopper
    assert cost.per_request_s == pytest.approx(active_s + 18 * 128 * row_s)


def test_a_model_cost_has_all_of_it() -> None:
    model = find_model("DS-27B").shape
    cost = model_cost(model, H800, HALF, kv_dtype="fp8", ffn_gpus=8, prefill_base_s=0.08, decode_base_s=0.012)
    assert (cost.kv_bytes_per_token, cost.num_layers) == (21720, 30)
    assert cost.prefill == prefill_cost(model, H800, HALF, base_s=0.08)
    assert cost.decode == decode_cost(model, H800, HALF, kv_dtype="fp8", ffn_gpus=8, base_s=0.012)


@pytest.mark.parametrize("value", [0.0, -1.0, 1.01, float("nan")])
def test_an_efficiency_is_a_fraction(value: float) -> None:
    with pytest.raises(ConfigError, match="efficiency pairs must be more than 0 and at most 1"):
        Efficiency(0.5, value, 0.5, 0.5)


def test_checkpoint_sizes() -> None:
    """GPT-OSS-120B: 60.8 GiB (its model card, table 1). DeepSeek-V3: a byte a weight, two where it is an embedding."""
    assert weight_bytes(find_model("GPT-OSS-120B").shape).total == pytest.approx(60.8 * 2**30, rel=0.01)
    v3 = find_model("DeepSeek-V3").shape
    assert weight_bytes(v3).total == v3.total_params + 2 * 129280 * 7168


def test_a_model_that_does_not_fit_is_refused() -> None:
    v3 = find_model("DeepSeek-V3").shape
    with pytest.raises(
        ConfigError, match=r"DeepSeek-V3 does not fit on H800: its weights take 97.\d GB of each of 8 GPUs"
    ):
        free_hbm_bytes(v3, H800, 8)
    weights = weight_bytes(v3)
    own = weights.attention + weights.head + weights.embedding
    free = free_hbm_bytes(v3, H800, 32)
    assert free == pytest.approx(72e9 - own - (weights.ffn + weights.experts) / 32)
    assert free_hbm_bytes(v3, H800, 32, attention_gpus=8) == pytest.approx(free + own * 7 / 8)
    with pytest.raises(ConfigError, match="ffn_gpus must be at least 1, not 0"):
        free_hbm_bytes(v3, H800, 0)


def test_the_hardware_trend_of_the_paper() -> None:
    """Ampere to Blackwell (arXiv 2602.21548): FLOPS x 28.8, NIC x 2.0, memory x 2.2, I/O to compute / 14.4."""
    a100, b200 = GPUS["A100"], GPUS["B200"]
    flops = max(b200.dense_flops_per_s.values()) / max(a100.dense_flops_per_s.values())
    nic = b200.cnic.bytes_per_s / a100.cnic.bytes_per_s
    assert flops == pytest.approx(28.8, abs=0.05)
    assert nic == 2
    assert b200.hbm_bytes / a100.hbm_bytes == pytest.approx(2.2, abs=0.051)
    assert flops / nic == pytest.approx(14.4, abs=0.05)


def test_catalogues_are_whole_and_say_where_from() -> None:
    assert set(GPUS) == {"A100", "H100", "H800", "H200", "H20", "B200", "GB200"}
    assert [nic.bytes_per_s for nic in NICS.values()] == [12.5e9, 25e9, 50e9, 100e9]
    for entry in (*GPUS.values(), *NICS.values()):
        assert entry.source
    for gpu in GPUS.values():
        rates = list(gpu.dense_flops_per_s.values())
        assert all(narrow == 2 * wide for wide, narrow in itertools.pairwise(rates))


def test_hardware_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="A100 has no fp8 FLOPS: one of bf16"):
        GPUS["A100"].flops_per_s("fp8")
    with pytest.raises(ConfigError, match=r"gpu must be one of A100, .*, not 'V100'"):
        find_gpu("V100")


def test_without_fp8_its_weights_are_multiplied_in_bf16() -> None:
    model = find_model("DeepSeek-V3.2").shape
    on_a100 = prefill_cost(model, find_gpu("A100"))
    on_h800 = prefill_cost(model, H800)
    assert on_a100.group_token_s / on_h800.group_token_s == pytest.approx(1979 / 312)
    assert on_a100.index_pair_s / on_h800.index_pair_s == pytest.approx(1979 / 312)
    assert on_a100.pair_s / on_h800.pair_s == pytest.approx(989.5 / 312)
