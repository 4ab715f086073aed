"""Model directories that we write can be read by whoever may read their folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dualpath.models.init import init_model
from dualpath.models.noise import add_noise


@pytest.fixture(params=[0o022, 0o077], ids=["open", "private"])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    former = os.umask(request.param)
    yield request.param
    os.umask(former)


def test_weights_have_the_mode_of_any_new_file(mask: int, tmp_path: Path) -> None:
    for directory in (init_model("llama", tmp_path / "model"), add_noise(tmp_path / "model", tmp_path / "noisy")):
        assert {file.stat().st_mode & 0o777 for file in directory.iterdir()} == {0o666 & ~mask}
        assert list(directory.glob("*.safetensors"))
