"""``dualpath model init``: make a small random model, for trying things out without a download."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dualpath.core.errors import ConfigError

_SIZES = {
    "layers": "transformer layers",
    "hidden": "width of the residual stream",
    "heads": "attention heads",
    "kv_heads": "key and value heads",
    "head_dim": "width of one head",
    "intermediate": "width of the MLP",
    "vocab_size": "rows of the embedding",
    "max_context_tokens": "longest context, in tokens",
}


def add(verbs: Any) -> None:
    model = verbs.add_parser("model", help="make test models")
    actions = model.add_subparsers(title="commands", dest="action", metavar="COMMAND", required=True)
    parser = actions.add_parser(
        "init",
        help="write a small random model that transformers loads as it is",
        description="Write a small random model directory: config, weights and a byte tokenizer.",
    )
    parser.add_argument("--family", required=True, help="transformers' model_type, e.g. llama, qwen3, deepseek_v3")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new or empty directory")
    parser.add_argument("--preset", default="tiny", help="sizes to start from: tiny or demo (default: tiny)")
    for name, text in _SIZES.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, metavar="N", help=f"{text} (default: the preset's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random weights (default: 0)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default: float32)")
    parser.set_defaults(run=_init)


def _init(arguments: argparse.Namespace) -> int:
    from dualpath.models.init import init_model

    sizes = {name: getattr(arguments, name) for name in _SIZES}
    try:
        path = init_model(
            arguments.family,
            arguments.out,
            preset=arguments.preset,
            seed=arguments.seed,
            dtype=arguments.dtype,
            **sizes,
        )
    except OSError as error:
        raise ConfigError(f"cannot write {arguments.out}: {error.strerror or error}") from error
    num_bytes = sum(file.stat().st_size for file in path.iterdir())
    print(f"{path}: {arguments.family}, {num_bytes / 1e6:.1f} MB")
    return 0
