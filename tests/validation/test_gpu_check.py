"""``dualpath gpu check`` on a CPU: its whole plan with small sizes, where torch and transformers are all there is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dualpath.core.errors import ConfigError
from dualpath.store.nixl_api import nixl_api
from dualpath.validation.gpu.plan import HTML, JSON, STEPS, Check, Step
from dualpath.validation.gpu.result import Findings
from dualpath.validation.gpu.setting import Setting

MISSING = (
    "nixl nixl_cu12 nixl_cu13 fastapi uvicorn starlette obstore msgspec xxhash prometheus_client uvloop pydantic "
    "llguidance opentelemetry ray greenlet"
)
BARE = f"""
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING.split()!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from dualpath.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def _bare(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BARE, *words], capture_output=True, text=True, timeout=280)


@pytest.mark.timeout(300)  # 10 s of work, and much more on a busy machine
def test_the_whole_plan_runs_on_a_bare_box(tmp_path: Path) -> None:
    done = _bare("gpu", "check", "--device", "cpu", "--out", str(tmp_path / "results"))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "results" / JSON).read_text())
    status = {step["name"]: step["status"] for step in result["steps"]}
    assert status == {step.name: "done" for step in STEPS} | {"nixl": "skipped"}
    found = {verdict["what"]: verdict["passed"] for step in result["steps"] for verdict in step["verdicts"]}
    assert found["gpt_oss: exact by every path"] is True
    assert found["MLA 128:1 x 576/512 is right"] is True
    assert found["systems generate the same tokens"] is True
    page = (tmp_path / "results" / HTML).read_text()
    assert "exact by every path" in page
    assert all(step.name in page for step in STEPS)
    assert (tmp_path / "results" / "trace-split.json").exists()


def test_what_needs_a_missing_package_says_which() -> None:
    done = _bare("batch", "--anything", "x")
    assert done.returncode == 2
    assert "batch needs the package" in done.stderr


def test_device_memory_over_nixl_leads_to_the_same_tokens(tmp_path: Path) -> None:
    try:
        nixl_api()
    except ConfigError as reason:
        pytest.skip(str(reason))
    lines: list[str] = []
    assert Check("cpu", tmp_path, 600, lines.append, [STEPS[-1]]).run(), lines
    assert any("same tokens: True" in line for line in lines)


def _step(name: str, run: Any, usual_s: float = 1.0) -> Step:
    return Step(name, usual_s, run)


def test_a_step_that_fails_keeps_what_it_found_and_the_next_one_runs(tmp_path: Path) -> None:
    def break_down(setting: Setting, found: Findings) -> None:
        found.verdict("the first half", 1, True)
        raise RuntimeError("CUDA error: an illegal memory access")

    def fall_short(setting: Setting, found: Findings) -> None:
        found.verdict("fast enough", "0.5 times", False)

    def seen(setting: Setting, found: Findings) -> None:
        assert json.loads((tmp_path / JSON).read_text())["steps"][0]["status"] == "failed", "it is on disk already"

    steps = [_step("one", break_down), _step("two", fall_short), _step("three", seen), _step("long", seen, 1e9)]
    assert not Check("cpu", tmp_path, 600, lambda _: None, steps).run()
    one, two, three, long = json.loads((tmp_path / JSON).read_text())["steps"]
    assert one["verdicts"][0]["passed"] is True
    assert "illegal memory access" in one["notes"][0]
    assert (two["status"], three["status"], long["status"]) == ("failed", "done", "skipped")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    from dualpath.cli.main import main

    assert main(["gpu", "check", "--out", "/nonexistent/x"]) == 2
    assert "no usable CUDA device" in capsys.readouterr().err
