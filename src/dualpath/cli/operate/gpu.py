"""``dualpath gpu check``: what runs here by which kernel, whether it is exact, and how fast for this box."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualpath.cli.command import add_command, add_group
from dualpath.config.fields import Options, setting
from dualpath.core.errors import ConfigError


class _CheckOptions(Options):
    """Try everything about a GPU that cannot be known without one, in under ten minutes: kernels, exactness against
    transformers, decode, copies, layer streaming, a rollout. Needs torch and transformers, no NIXL, no model: it makes
    its own. Results are written after each step, as JSON and as a page.
    """

    out: Path = setting(metavar="DIR", help="where gpu-check.json, gpu-check.html and traces go")
    device: str = setting(
        "cuda", pattern=r"cpu|cuda(:[0-9]+)?", pattern_means="cpu, cuda or cuda:N",
        help="cuda, cuda:N, or cpu: the same steps with small sizes, to see that they run",
    )  # fmt: skip
    limit_s: float = setting(600.0, above=0, help="steps that would not end by then are left out")


def add(verbs: Any) -> None:
    actions = add_group(verbs, "gpu", "see what a GPU makes of all this")
    add_command(actions, "check", "kernels, exactness and speed on this box's GPU", _check, _CheckOptions)


def _check(options: _CheckOptions) -> int:
    from dualpath.cluster.setup import quiet_process

    quiet_process()
    import torch

    from dualpath.validation.gpu.plan import HTML, JSON, Check

    if options.device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"--device {options.device}: this machine has no usable CUDA device; cpu shows the steps")
    device = "cuda:0" if options.device == "cuda" else options.device
    passed = Check(device, options.out, options.limit_s, lambda line: print(line, flush=True)).run()
    print(f"written: {options.out / JSON}, {options.out / HTML}")
    return 0 if passed else 1
