"""Rates are measured as they will be used: copies from pinned memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dualpath.cluster.measure import Measurer
from dualpath.core.runtime import SystemRuntime


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_copy_rate_is_of_pinned_memory_where_staging_is_pinned(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ones, zeros, pinned = torch.ones, torch.zeros, []

    def make_ones(size: int, *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        pinned.append(pin_memory)
        return ones(8, dtype=dtype)

    def make_zeros(size: int, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return zeros(8, dtype=dtype)

    monkeypatch.setattr(torch, "ones", make_ones)
    monkeypatch.setattr(torch, "zeros", make_zeros)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    model: Any = SimpleNamespace(device=torch.device(kind))
    assert Measurer(model, SystemRuntime()).copy_rate() > 0
    assert pinned == [kind == "cuda"]
