"""``dualpath model``: make a small random model to try things out with; measure how fast a model runs here."""

from __future__ import annotations

import argparse
import os
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
    model = verbs.add_parser("model", help="make test models, measure models")
    actions = model.add_subparsers(title="commands", dest="action", metavar="COMMAND", required=True)
    _add_init(actions)
    _add_profile(actions)
    _add_follow(actions)


def _add_init(actions: Any) -> None:
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


def _add_profile(actions: Any) -> None:
    threads = max(1, (os.cpu_count() or 1) // 2)
    parser = actions.add_parser(
        "profile",
        help="measure a model's speed on this machine, for the scheduler",
        description="Measure prefill and decode times, checksum and copy rates in under a minute. dualpath serve reads "
        "the result and sets the scheduler's limits and the compute quota by it.",
    )
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="model directory")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    parser.add_argument("--dtype", default="auto", help="as for serve (default: the checkpoint's own)")
    parser.add_argument(
        "--threads",
        type=int,
        default=threads,
        metavar="N",
        help=f"CPU threads of one engine's model, as serve will have (default: cores / 2 = {threads})",
    )
    parser.add_argument("--budget-s", type=float, default=40.0, metavar="X", help="seconds to measure (default: 40)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: dualpath-profile.json beside the model")
    parser.set_defaults(run=_profile)


def _add_follow(actions: Any) -> None:
    parser = actions.add_parser(
        "follow",
        help="run a share of a model for a prefill engine elsewhere",
        description="One of the processes that run a prefill engine's model together ([cluster] tensor_parallel), on "
        "any host: for a node with tensor_parallel_listen. Waits for the node, ends with it. Both know a secret, in "
        "DUALPATH_SECRET or in the file that DUALPATH_SECRET_FILE names. Collectives take the interface that reaches "
        "the node, or that of GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME.",
    )
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="the same model directory")
    parser.add_argument("--master", required=True, metavar="HOST:PORT", help="the node's tensor_parallel_listen")
    parser.add_argument("--world", required=True, type=int, metavar="N", help="the node's tensor_parallel")
    parser.add_argument("--rank", required=True, type=int, metavar="N", help="1 to N - 1; the node itself is 0")
    parser.add_argument("--dtype", default="auto", help="as the node's (default: the checkpoint's own)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
    parser.set_defaults(run=_follow)


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


def _profile(arguments: argparse.Namespace) -> int:
    if arguments.threads < 1 or not arguments.budget_s > 0:
        raise ConfigError("--threads and --budget-s must be positive")
    if not arguments.model.is_dir():
        raise ConfigError(f"no such model directory: {arguments.model}")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # our own lines say how far we are
    import torch

    from dualpath.core.runtime import SystemRuntime
    from dualpath.launch.measure import Measurer
    from dualpath.launch.profile import FILE_NAME
    from dualpath.models.load import load_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(arguments.threads)
    path = (arguments.out or arguments.model / FILE_NAME).absolute()
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"cannot write {path}; --out names another place")
    print(f"loading {arguments.model}", flush=True)
    model = load_model(
        arguments.model, dtype=arguments.dtype, device=device if arguments.device == "auto" else arguments.device
    )
    measurer = Measurer(model, SystemRuntime(), arguments.budget_s, lambda line: print(f"  {line}", flush=True))
    profile = measurer.profile(arguments.threads)
    profile.write(path)
    rate = profile.beta_tokens / 5
    print(f"{path}: {rate:.0f} tokens/s of prefill on {profile.setup.device}, beta {profile.beta_tokens} tokens")
    return 0


def _follow(arguments: argparse.Namespace) -> int:
    if not 1 <= arguments.rank < arguments.world:
        raise ConfigError(f"--rank: must be 1 to {arguments.world - 1}, not {arguments.rank}")
    host, _, port = arguments.master.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--master: must be HOST:PORT, not {arguments.master!r}")
    from dualpath.core.handshake import read_secret
    from dualpath.models.parallel.follower import FollowerSettings, follow
    from dualpath.models.parallel.group import Membership
    from dualpath.models.parallel.load import check_parallel

    member = Membership(arguments.rank, arguments.world, host, int(port), secret=read_secret(os.environ))
    check_parallel(arguments.model, arguments.world, "auto")
    follow(FollowerSettings(member, str(arguments.model), arguments.dtype, arguments.threads))
    return 0
