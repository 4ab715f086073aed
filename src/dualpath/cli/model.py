"""``dualpath model``: make a small random model, import one from a GGUF file, measure how fast one runs here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dualpath.cli.command import add_command, add_group
from dualpath.config.fields import Address, Options, setting
from dualpath.core.errors import ConfigError

_PRESETS = "the preset's"


class _InitOptions(Options):
    """Write a small random model directory: config, weights and a byte tokenizer."""

    family: str = setting(metavar="FAMILY", help="transformers' model_type, e.g. llama, qwen3, deepseek_v3")
    out: Path = setting(metavar="DIR", help="a new or empty directory")
    preset: str = setting("tiny", metavar="PRESET", help="sizes to start from: tiny or demo")
    layers: int | None = setting(None, none_means=_PRESETS, help="transformer layers")
    hidden: int | None = setting(None, none_means=_PRESETS, help="width of the residual stream")
    heads: int | None = setting(None, none_means=_PRESETS, help="attention heads")
    kv_heads: int | None = setting(None, none_means=_PRESETS, help="key and value heads")
    head_dim: int | None = setting(None, none_means=_PRESETS, help="width of one head")
    intermediate: int | None = setting(None, none_means=_PRESETS, help="width of the MLP")
    vocab_size: int | None = setting(None, none_means=_PRESETS, help="rows of the embedding")
    max_context_tokens: int | None = setting(None, none_means=_PRESETS, help="longest context, in tokens")
    seed: int = setting(0, help="of the random weights")
    dtype: str = setting("float32", metavar="DTYPE", help="float32, bfloat16 or float16")


class _ImportOptions(Options):
    """Turn a GGUF file into a model directory. Its weights are dequantised once."""

    file: Path = setting(positional=True, metavar="FILE.gguf", help="of an architecture that transformers reads")
    out: Path = setting(metavar="DIR", help="a new or empty directory")
    dtype: str = setting("float32", metavar="DTYPE", help="float32, bfloat16 or float16")


class _ProfileOptions(Options):
    """Measure prefill and decode times, checksum and copy rates in under a minute. dualpath serve reads the result and
    sets the scheduler's limits and the compute quota by it.
    """

    model: Path = setting(metavar="DIR", help="model directory")
    device: str = setting("auto", metavar="DEVICE", help="cpu, cuda or cuda:N; auto is cuda where there is one")
    dtype: str = setting("auto", metavar="DTYPE", help="as for serve; auto is the checkpoint's own")
    threads: int | None = setting(
        None, none_means="half of the cores", help="CPU threads of one engine's model, as serve will have"
    )
    budget_s: float = setting(40.0, above=0, help="seconds to measure")
    out: Path | None = setting(
        None, metavar="FILE", none_means="dualpath-profile.json beside the model", help="where to write it"
    )


class _FollowOptions(Options):
    """One of the processes that run a prefill engine's model together ([cluster] tensor_parallel), on any host: for a
    node with tensor_parallel_listen. Waits for the node, ends with it. Both know a secret, in DUALPATH_SECRET or in the
    file that DUALPATH_SECRET_FILE names. Collectives take the interface that reaches the node, or that of
    GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME.
    """

    model: Path = setting(metavar="DIR", help="the same model directory")
    master: Address = setting(help="the node's tensor_parallel_listen")
    world: int = setting(help="the node's tensor_parallel")
    rank: int = setting(help="1 to N - 1; the node itself is 0")
    dtype: str = setting("auto", metavar="DTYPE", help="as the node's; auto is the checkpoint's own")
    threads: int = setting(1, help="CPU threads")


def add(verbs: Any) -> None:
    actions = add_group(verbs, "model", "make test models, measure models")
    add_command(actions, "init", "write a small random model that transformers loads as it is", _init, _InitOptions)
    add_command(actions, "import", "make a model directory of a GGUF file", _import, _ImportOptions)
    text = "measure a model's speed on this machine, for the scheduler"
    add_command(actions, "profile", text, _profile, _ProfileOptions)
    text = "run a share of a model for a prefill engine elsewhere"
    add_command(actions, "follow", text, _follow, _FollowOptions)


def _init(options: _InitOptions) -> int:
    from dualpath.models.init import init_model

    given = dict(vars(options))
    try:
        path = init_model(given.pop("family"), given.pop("out"), **given)
    except OSError as error:
        raise ConfigError(f"cannot write {options.out}: {error.strerror or error}") from error
    return _say(path, options.family)


def _import(options: _ImportOptions) -> int:
    from dualpath.models.gguf import DTYPES, import_gguf

    if options.dtype not in DTYPES:
        raise ConfigError(f"--dtype: must be one of {', '.join(DTYPES)}, not {options.dtype}")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        path = import_gguf(options.file, options.out, dtype=options.dtype)
    except OSError as error:
        raise ConfigError(f"cannot write {options.out}: {error.strerror or error}") from error
    return _say(path, options.file.name)


def _say(path: Path, what: str) -> int:
    num_bytes = sum(file.stat().st_size for file in path.iterdir())
    print(f"{path}: {what}, {num_bytes / 1e6:.1f} MB")
    return 0


def _profile(options: _ProfileOptions) -> int:
    threads = max(1, (os.cpu_count() or 1) // 2) if options.threads is None else options.threads
    if threads < 1:
        raise ConfigError(f"--threads: must be positive, not {threads}")
    if not options.model.is_dir():
        raise ConfigError(f"no such model directory: {options.model}")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # our own lines say how far we are
    import torch

    from dualpath.cluster.measure import Measurer
    from dualpath.cluster.profile import FILE_NAME
    from dualpath.core.runtime import SystemRuntime
    from dualpath.models.load import load_model

    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = auto if options.device == "auto" else options.device
    torch.set_num_threads(threads)
    path = (options.out or options.model / FILE_NAME).absolute()
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"cannot write {path}; --out names another place")
    print(f"loading {options.model}", flush=True)
    model = load_model(options.model, dtype=options.dtype, device=device)
    measurer = Measurer(model, SystemRuntime(), options.budget_s, lambda line: print(f"  {line}", flush=True))
    profile = measurer.profile(threads)
    profile.write(path)
    rate = profile.beta_tokens / 5
    print(f"{path}: {rate:.0f} tokens/s of prefill on {profile.setup.device}, beta {profile.beta_tokens} tokens")
    return 0


def _follow(options: _FollowOptions) -> int:
    if not 1 <= options.rank < options.world:
        raise ConfigError(f"--rank: must be 1 to {options.world - 1}, not {options.rank}")
    from dualpath.core.handshake import read_secret
    from dualpath.models.parallel.follower import FollowerSettings, follow
    from dualpath.models.parallel.group import GroupMember
    from dualpath.models.parallel.load import check_parallel

    member = GroupMember(options.rank, options.world, *options.master, secret=read_secret(os.environ))
    check_parallel(options.model, options.world, "auto")
    follow(FollowerSettings(member, str(options.model), options.dtype, options.threads))
    return 0
