"""What the connector says of configurations of a real vLLM: a program for vLLM's environment.

``compat_cases.py MODEL``, cases as JSON on stdin (name -> arguments, changes); what each was refused for in a line of
stdout behind ``REFUSED``, how its blocks are named in one behind ``NAMED``, and how a layer of the last case packs them
behind ``PACKED``. No server starts.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    import torch
    from vllm.config import KVTransferConfig, set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.attention import Attention
    from vllm.v1.kv_cache_interface import (
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
        MLAAttentionSpec,
        SlidingWindowSpec,
    )

    from dualpath.core.errors import ConfigError
    from dualpath.vllm.compat import check_server
    from dualpath.vllm.identity import mode, packing

    def group(kind: str) -> Any:
        common = {"block_size": 128, "num_kv_heads": 4, "head_size": 32, "dtype": torch.float32}
        if kind == "sliding":
            return KVCacheGroupSpec(["a"], SlidingWindowSpec(**common, sliding_window=256))
        if kind == "mla":
            return KVCacheGroupSpec(["a"], MLAAttentionSpec(**common | {"num_kv_heads": 1, "head_size": 576}))
        window = {"sliding_window": 256} if kind == "full-with-window" else {}
        return KVCacheGroupSpec(["a"], FullAttentionSpec(**common, **window, non_causal=kind == "non-causal"))

    refused, named = {}, {}
    for name, case in json.load(sys.stdin).items():
        transfer = case["transfer"]
        config = EngineArgs(
            model=sys.argv[1], kv_transfer_config=KVTransferConfig(**transfer), **case.get("arguments", {})
        )
        made = config.create_engine_config()
        groups = [group(kind) for kind in case.get("groups", ["full"])]
        cache = KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=groups)
        for path, value in case.get("changes", {}).items():
            *parents, last = path.split(".")
            place: Any = made
            for parent in parents:
                place = getattr(place, parent)
            assert hasattr(place, last), f"{path}: vLLM has no such setting any more"
            object.__setattr__(place, last, value)
        named[name] = mode(made)
        try:
            check_server(made, cache)
        except ConfigError as error:
            refused[name] = str(error)
    name = "model.layers.0.self_attn.attn"
    with set_current_vllm_config(made):
        layer = Attention(4, 32, 1.0, num_kv_heads=4, cache_config=made.cache_config, prefix=name)
        builder = layer.get_attn_backend().get_builder_cls()
        builder(group("full").kv_cache_spec, [name], made, torch.device("cpu"))
    print(f"\nREFUSED {json.dumps(refused)}\nNAMED {json.dumps(named)}\nPACKED {json.dumps(packing(made, [name]))}")


if __name__ == "__main__":
    main()
