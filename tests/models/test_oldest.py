"""What older releases of transformers would do wrongly is refused, in the process that would do it."""

from __future__ import annotations

import pytest

from dualpath.core.errors import UnsupportedModelError
from dualpath.models.families import SUPPORTED_FAMILIES
from dualpath.models.load import check_transformers


@pytest.mark.parametrize("version", ["5.17.0", "5.22.3", "5.9.1"])
def test_sparse_attention_needs_a_cache_of_latents(version: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"deepseek_v32 needs transformers 5\.23 or newer, here is 5\."):
        check_transformers("deepseek_v32", version)


@pytest.mark.parametrize("version", ["5.23.0", "5.23.0.dev1", "6.0.1"])
def test_newer_ones_have_it(version: str) -> None:
    check_transformers("deepseek_v32", version)


def test_other_families_run_with_all() -> None:
    for family in SUPPORTED_FAMILIES:
        if family != "deepseek_v32":
            check_transformers(family, "5.17.0")
