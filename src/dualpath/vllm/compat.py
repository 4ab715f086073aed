"""What of vLLM DualPath works with. Everything else is refused when the server starts, in one line that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from vllm.distributed.parallel_state import get_tp_group
from vllm.model_executor.model_loader import get_model_loader
from vllm.platforms import current_platform
from vllm.transformers_utils.config import get_config
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec

import vllm
from dualpath.core.errors import ConfigError
from dualpath.vllm import identity
from dualpath.vllm.worker.ranks import Ranks

TESTED = "0.32"  # the interface of KV connectors changes between minor versions
_NON_CAUSAL = "attention to later tokens: a block's KV would depend on what follows it"


def check_server(config: Any, kv_cache_config: Any) -> None:
    """``config``: a ``VllmConfig``. Raises ConfigError."""
    version = vllm.__version__
    _refuse(not version.startswith(f"{TESTED}."), f"vLLM {version}: this connector was made for vLLM {TESTED}")
    _check_transfer(config.kv_transfer_config)
    _check_model(config)
    identity.mode(config)  # raises where a setting cannot be part of blocks' name
    _check_parallel(config.parallel_config)
    _check_steps(config)
    _check_groups(kv_cache_config.kv_cache_groups, current_platform.is_cpu())


def _refuse(is_wrong: bool, text: str) -> None:
    if is_wrong:
        raise ConfigError(f"DualPath cannot serve this: {text}")


def _check_transfer(transfer: Any) -> None:
    policy = transfer.kv_load_failure_policy
    _refuse(transfer.kv_role != "kv_both", f'--kv-transfer-config: kv_role must be "kv_both", not {transfer.kv_role}')
    _refuse(
        policy != "recompute",
        f'--kv-transfer-config: kv_load_failure_policy must be "recompute", not "{policy}": what does not arrive is'
        " computed, and the request goes on",
    )


def _check_model(config: Any) -> None:
    model = config.model_config
    _refuse(config.lora_config is not None, "an adapter's KV must not meet other requests; leave out --enable-lora")
    _refuse(
        model.is_multimodal_model,
        f"{model.model} is multimodal: its KV depends on more than token ids, and those are what blocks are named by",
    )
    _refuse(model.is_encoder_decoder, f"{model.model} is an encoder-decoder")
    _refuse(model.runner_type != "generate", f"--runner {model.runner_type}: DualPath is for generation")
    _refuse(model.enable_prompt_embeds, "--enable-prompt-embeds: blocks are named by token ids")
    _refuse(bool(model.hf_config_path), "--hf-config-path: blocks are named by the config.json beside the weights")
    changing = config.weight_transfer_config is not None
    _refuse(changing, "--weight-transfer-config: blocks are named by their weights: use the gateway's /update_weights")
    _refuse(model.enable_sleep_mode, "--enable-sleep-mode: transfers reach KV memory, which must not be given up")
    _refuse(config.attention_config.use_non_causal, _NON_CAUSAL)


def _check_parallel(parallel: Any) -> None:
    for name in ("pipeline", "data", "decode_context", "prefill_context"):
        size = getattr(parallel, f"{name}_parallel_size", 1)
        _refuse(size != 1, f"--{name.replace('_', '-')}-parallel-size {size}: workers may share heads, nothing else")
    hosts = getattr(parallel, "nnodes", 1)
    _refuse(hosts != 1, f"--nnodes {hosts}: all ranks of a server must be on one host")


def _check_steps(config: Any) -> None:
    scheduler = config.scheduler_config
    _refuse(
        bool(scheduler.async_scheduling),
        "a step must not begin before the loads of the last one are known to have succeeded; add --no-async-scheduling",
    )
    _refuse(config.speculative_config is not None, "speculative decoding fills blocks with tokens that are rejected")
    _refuse(config.diffusion_config is not None, "a diffusion model writes over the KV of its blocks")
    threshold = scheduler.long_prefill_token_threshold
    _refuse(
        threshold > 0,
        f"--long-prefill-token-threshold {threshold}: after a load has failed, a request could use blocks that another"
        " one has not computed yet",
    )


def _check_groups(groups: Any, on_cpu: bool) -> None:
    _refuse(
        len(groups) != 1,
        f"a hybrid model with {len(groups)} groups of KV caches: all layers must keep the KV of all tokens",
    )
    spec = groups[0].kv_cache_spec
    whole = type(spec) in (FullAttentionSpec, MLAAttentionSpec)
    _refuse(not whole, f"layers of kind {type(spec).__name__}: all layers must keep the KV of all tokens")
    _refuse(is_mla(spec) and on_cpu, "MLA on a CPU: vLLM cannot compute a prompt there behind KV that it already has")
    limited = getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None)
    _refuse(bool(limited), f"attention over the last {limited} tokens only")
    _refuse(bool(getattr(spec, "non_causal", False)), _NON_CAUSAL)


def read_config(config: Any, directory: Path) -> dict[str, Any]:
    """A config.json as vLLM understands it. Raises OSError or ValueError."""
    found: dict[str, Any] = get_config(directory, config.model_config.trust_remote_code).to_dict()
    return found


def is_mla(spec: Any) -> bool:
    """Whether all ranks have the same KV."""
    return isinstance(spec, MLAAttentionSpec)


class _TensorRanks:
    """``worker.ranks.Ranks`` by vLLM's own group for what is said beside tensors."""

    def __init__(self) -> None:
        group = get_tp_group()
        self.rank, self.num_ranks, self._group = group.rank_in_group, group.world_size, group.cpu_group

    def gather(self, mine: Any) -> list[Any]:
        found: list[Any] = [None] * self.num_ranks
        torch.distributed.all_gather_object(found, mine, group=self._group)
        return found


def find_ranks(config: Any) -> Ranks | None:
    """None: the server has one worker. In a worker."""
    return _TensorRanks() if config.parallel_config.tensor_parallel_size > 1 else None


def can_reload(config: Any) -> bool:
    return hasattr(get_model_loader(config.load_config), "get_all_weights")


def model_dir(config: Any) -> Path:
    """Where the weights lie that vLLM has loaded. Raises ConfigError."""
    name = config.model_config.model
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=config.model_config.revision, local_files_only=True))
    except Exception as error:
        raise ConfigError(f"cannot find the weights of {name} on this host: {error}") from None
