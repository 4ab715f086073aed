"""Small random models, made once per test session, and the reference that everything is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dualpath.core.errors import UnsupportedModelError
from dualpath.models.init import init_model
from dualpath.models.load import check_transformers, load_model
from dualpath.models.seam import Model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small models gain nothing from more
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_dir_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        try:
            check_transformers(family)
        except UnsupportedModelError as reason:
            pytest.skip(str(reason))
        if family not in made:
            made[family] = init_model(family, tmp_path_factory.mktemp("models") / family, seed=1)
        return made[family]

    return make


@pytest.fixture(scope="session")
def model_of(model_dir_of: Callable[[str], Path]) -> Callable[[str], Model]:
    made: dict[str, Model] = {}

    def load(family: str) -> Model:
        if family not in made:
            made[family] = load_model(model_dir_of(family), dtype="float32", fingerprint="00")
        return made[family]

    return load
