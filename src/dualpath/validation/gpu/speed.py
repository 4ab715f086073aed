"""Step 4: a model's profile, as ``dualpath model profile`` makes it."""

from __future__ import annotations

from dualpath.cluster.measure import Measurer
from dualpath.core.runtime import SystemRuntime
from dualpath.models.load import load_model
from dualpath.validation.gpu.result import Findings
from dualpath.validation.gpu.setting import Setting


def run(setting: Setting, found: Findings) -> None:
    model = load_model(setting.timed_model_dir(), device=setting.device_name, fingerprint="00")
    profile = Measurer(model, SystemRuntime(), setting.scale.profile_s).profile(1)
    found.notes.append(f"kernels: {', '.join(f'{shape}: {path}' for shape, path in model.kernel_paths.items())}")
    found.verdict("prefill, tokens/s", round(profile.beta_tokens / 5))
    found.verdict("from pinned memory, GB/s", round(profile.copy_bytes_per_s / 1e9, 2))
    setting.rates.to_device = profile.copy_bytes_per_s
    prefill = found.table("Prefill", "cached tokens", "new tokens", "ms")
    prefill.rows += [[s.num_cached, s.num_new, f"{s.time_s * 1e3:.2f}"] for s in profile.prefill]
    decode = found.table("Decode", "requests", "context tokens of all", "ms")
    decode.rows += [[s.num_requests, s.num_context_tokens, f"{s.time_s * 1e3:.2f}"] for s in profile.decode]
