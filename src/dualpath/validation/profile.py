"""The profile that both sides of a validation use: the model's own where it holds here, otherwise one measured now."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from dualpath.cluster.measure import Measurer
from dualpath.cluster.profile import FILE_NAME, Profile, Setup
from dualpath.core.runtime import SystemRuntime
from dualpath.models.load import load_model
from dualpath.validation.settings import ValidateSettings, threads_per_engine


@contextmanager
def profile_for(settings: ValidateSettings, console: Console) -> Iterator[tuple[Profile, Path]]:
    """The profile and its file, as long as the block runs. What is measured here is not kept."""
    model, threads = settings.model, threads_per_engine(settings)
    torch.set_num_threads(threads)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if model.device == "auto" else model.device
    loaded = load_model(model.dir, dtype=model.dtype, device=device)
    known = model.profile or model.dir / FILE_NAME
    if known.exists():
        profile = Profile.read(known)
        reason = profile.mismatch(Setup.of(loaded, threads))
        if reason is None:
            yield profile, known
            return
        console.print(f"{known} does not hold here ({reason})", highlight=False)
    with tempfile.TemporaryDirectory(prefix="dualpath-validate-") as directory:
        with console.status("measuring the model"):
            profile = Measurer(loaded, SystemRuntime()).profile(threads)
        path = Path(directory) / FILE_NAME
        profile.write(path)
        yield profile, path
