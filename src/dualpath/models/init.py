"""Make a small random model directory that transformers loads as it is, for tests and demos without downloads.

The usual initialisation (std 0.02) makes tiny models that repeat one token and ignore their context. Here every matrix
is scaled by its fan-in and attention scores are spread, so that heads look at few tokens, far ones included: greedy
text varies and depends on all of the context. Output is printable ASCII and practically never ends by itself: other
rows of ``lm_head`` are scaled down, the specials' to almost nothing.

``Qwen2Tokenizer``, which transformers insists on for qwen2, brings its text to Unicode's NFC form first; every other
family keeps text byte for byte.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from dualpath.core.errors import ConfigError
from dualpath.models.init_config import FAMILIES, ModelSizes, family_config
from dualpath.models.init_tokenizer import EOS_ID, PAD_ID, byte_tokenizer
from dualpath.models.saved import save

__all__ = ["FAMILIES", "PRESETS", "init_model"]

PRESETS: dict[str, ModelSizes] = {
    # Seconds to test, fractions of a second to make: a few MB.
    "tiny": ModelSizes(4, 128, 4, 2, 32, 256, vocab_size=264, max_context_tokens=32768),
    # For demos and benchmarks: llama and qwen3 weigh 85 MB in fp32 and cache 32 KiB a token (64 MiB for 2,048 tokens).
    "demo": ModelSizes(8, 512, 8, 8, 64, 1024, vocab_size=264, max_context_tokens=32768),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class _Gains:
    """Standard deviations of a module's outputs for inputs of variance 1. Found by trial over all families.

    Sharper scores make text livelier but amplify rounding: with these, fp32 logits (std 3 to 4) are off by about 3e-5;
    at score 2.4 it is 1.5e-4, and greedy tokens begin to depend on the order of sums.
    """

    score: float = 1.8  # of q and of k: attention scores have about its square
    attention_out: float = 1.5
    down: float = 0.5  # a feed-forward sees one token only; strong ones make text a function of the last token
    router: float = 2.0
    logits: float = 3.0
    novelty: float = 3.0  # how strongly lm_head turns away from the last token, against endless repetition


def init_model(
    family: str,
    out_dir: Path,
    *,
    preset: str = "tiny",
    layers: int | None = None,
    hidden: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    intermediate: int | None = None,
    vocab_size: int | None = None,
    max_context_tokens: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    **overrides: Any,
) -> Path:
    """Write a random model of ``family`` into ``out_dir`` (new or empty) and return that path.

    Dimensions not given come from the preset; ``overrides`` are config fields by transformers' name. The same
    arguments give the same bytes with the same torch and transformers. Raises ConfigError for bad arguments.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}: one of {', '.join(PRESETS)}")
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: one of {', '.join(DTYPES)}")
    given = {
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate": intermediate,
        "vocab_size": vocab_size,
        "max_context_tokens": max_context_tokens,
    }
    sizes = replace(PRESETS[preset], **{name: value for name, value in given.items() if value is not None})
    fields = family_config(family, sizes, overrides)
    _check_overrides(family, overrides)
    _check_out_dir(out_dir)
    model = _random_model(family, fields, seed, DTYPES[dtype])
    out_dir.mkdir(parents=True, exist_ok=True)
    save(out_dir, model, byte_tokenizer(sizes.max_context_tokens))
    return out_dir


def _check_overrides(family: str, overrides: dict[str, Any]) -> None:
    """transformers takes any field name in silence; a misspelt one would make another model than asked for."""
    known = AutoConfig.for_model(family).to_dict().keys()
    if unknown := sorted(set(overrides) - known):
        raise ConfigError(f"{family} has no config field {unknown[0]!r}")


def _check_out_dir(out_dir: Path) -> None:
    if out_dir.exists() and not out_dir.is_dir():
        raise ConfigError(f"{out_dir} exists and is not a directory")
    if out_dir.is_dir() and any(out_dir.iterdir()):
        raise ConfigError(f"{out_dir} exists and is not empty")


def _random_model(family: str, fields: dict[str, Any], seed: int, dtype: torch.dtype) -> PreTrainedModel:
    try:
        config = AutoConfig.for_model(family, **fields)
        config.dtype = dtype
        with torch.device("meta"):  # shapes only: no time spent on transformers' own initialisation
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ConfigError(f"cannot make a {family} model: {' '.join(str(error).split())}") from error
    model.to_empty(device="cpu")  # leaves rotary tables undefined, but those are never saved
    gains = _Gains()
    for name, tensor in model.state_dict().items():
        tensor.copy_(_random_tensor(name, tuple(tensor.shape), seed, gains, experts_in_first=family == "gpt_oss"))
    model.generation_config = GenerationConfig(eos_token_id=EOS_ID, pad_token_id=PAD_ID, do_sample=False)
    return model


def _random_tensor(
    name: str, shape: tuple[int, ...], seed: int, gains: _Gains, *, experts_in_first: bool
) -> torch.Tensor:
    """The float32 values of one tensor; they depend on the seed, the name and the shape only."""
    if name == "lm_head.weight":
        return _lm_head(shape, seed, gains)
    # Experts are [expert, out, in], gpt_oss's are [expert, in, out]; matrices are [out, in].
    fan_in = shape[1] if experts_in_first and len(shape) == 3 else shape[-1]
    mean, std = _mean_std(name, len(shape), fan_in, gains)
    return _noise(name, shape, seed) * std + mean


def _noise(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Uniform noise of mean 0 and std 1. Not normal: torch.rand is exact, randn's logarithms differ between CPUs."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return (torch.rand(shape, generator=generator) - 0.5) * math.sqrt(12.0)


def _mean_std(name: str, rank: int, fan_in: int, gains: _Gains) -> tuple[float, float]:
    module = name.removesuffix(".weight").rsplit(".", 1)[-1]
    if module in ("q_norm", "k_norm") and "indexer" not in name:
        return gains.score, 0.1  # normalised q and k would lose the spread that their projections give
    if module.endswith("norm"):
        return 1.0, 0.1
    if module == "embed_tokens":
        return 0.0, 1.0
    if module == "sinks":
        return 1.0, 1.0  # around the scores' own size, so that a lost sink is noticed
    if rank == 1 or module.endswith("_bias"):
        return 0.0, 0.1
    return 0.0, _gain(module, gains) / math.sqrt(fan_in)


def _gain(module: str, gains: _Gains) -> float:
    if module in ("q_proj", "k_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"):
        return gains.score
    roles = {"gate": gains.router, "router": gains.router, "o_proj": gains.attention_out, "down_proj": gains.down}
    return roles.get(module, 1.0)


def _lm_head(shape: tuple[int, ...], seed: int, gains: _Gains) -> torch.Tensor:
    """Random directions, turned away from each token's own embedding, and weak for what should not be generated."""
    head = _noise("lm_head.weight", shape, seed) * gains.logits
    head -= _noise("model.embed_tokens.weight", shape, seed) * gains.novelty
    scale = torch.full((shape[0], 1), 0.01)  # specials and padding rows: unlikely even when sampled
    scale[:256] = 0.25  # bytes that would not print
    scale[0x20:0x7F] = 1.0
    scale[0x0A] = 1.0
    return head * scale / math.sqrt(shape[1])
