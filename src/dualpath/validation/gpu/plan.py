"""The steps in their order, each with its time; results are on disk after each, whatever the next one does."""

from __future__ import annotations

import gc
import json
import logging
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dualpath import __version__
from dualpath.report.outputs import writing
from dualpath.report.page import page
from dualpath.validation.gpu import (
    copies,
    decode_rate,
    environment,
    exactness,
    kernels,
    rollouts,
    speed,
    streaming,
)
from dualpath.validation.gpu.result import Findings, SkipStepError
from dualpath.validation.gpu.scale import scale_for
from dualpath.validation.gpu.setting import Setting

JSON, HTML = "gpu-check.json", "gpu-check.html"
FORMAT = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    usual_s: float  # on a GPU: a step that would not end in time is left out
    run: Callable[[Setting, Findings], None]


STEPS = (
    Step("environment", 20, environment.run),
    Step("kernels", 60, kernels.run),
    Step("exactness", 70, exactness.run),
    Step("profile", 40, speed.run),
    Step("decode", 60, decode_rate.run),
    Step("copies", 30, copies.run),
    Step("streaming", 80, streaming.run),
    Step("rollout", 130, rollouts.run),
    Step("nixl", 20, rollouts.run_over_nixl),
)


class Check:
    """One run. ``run`` returns whether nothing failed."""

    def __init__(
        self, device: str, out: Path, limit_s: float, say: Callable[[str], None], steps: Sequence[Step] = STEPS
    ) -> None:
        self._device, self._out, self._limit_s, self._say, self._steps = device, out, limit_s, say, steps
        self._results: list[dict[str, Any]] = []
        self._start_s = time.perf_counter()

    def run(self) -> bool:
        self._out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="dualpath-gpu-check-", ignore_cleanup_errors=True) as folder:
            setting = Setting(torch.device(self._device), scale_for(self._device), Path(folder), self._out)
            for step in self._steps:
                self._results.append(self._carry_out(step, setting))
                self._write()
        return all(result["status"] in ("done", "skipped") for result in self._results)

    def _carry_out(self, step: Step, setting: Setting) -> dict[str, Any]:
        found, status, start_s = Findings(), "done", time.perf_counter()
        left_s = self._limit_s - (start_s - self._start_s)
        if step.usual_s > left_s:
            status = "skipped"
            found.notes.append(f"it takes about {step.usual_s:g} s, and {max(0.0, left_s):.0f} are left")
        else:
            try:
                step.run(setting, found)
            except SkipStepError as reason:
                status = "skipped"
                found.notes.append(str(reason))
            except Exception as error:  # a step's failure is a result
                log.debug("step %s", step.name, exc_info=True)
                status = "failed"
                found.notes.append(f"{type(error).__name__}: {error}")
                found.notes.append(traceback.format_exc(limit=-4))
        if any(verdict.passed is False for verdict in found.verdicts):
            status = "failed"
        _free(setting)
        took_s = time.perf_counter() - start_s
        self._tell(step, status, took_s, found)
        return {"name": step.name, "status": status, "took_s": round(took_s, 2), **asdict(found)}

    def _tell(self, step: Step, status: str, took_s: float, found: Findings) -> None:
        self._say(f"{step.name}: {status} in {took_s:.1f} s")
        for verdict in found.verdicts:
            mark = {True: "ok", False: "FAILED", None: "  "}[verdict.passed]
            self._say(f"  {mark:6} {verdict.what}: {verdict.value}")
        if status != "done":
            for note in found.notes:
                self._say(f"  {note.splitlines()[0]}")

    def _write(self) -> None:
        result = {
            "format": FORMAT,
            "version": __version__,
            "device": self._device,
            "took_s": round(time.perf_counter() - self._start_s, 1),
            "steps": self._results,
        }
        with writing(self._out / JSON):
            (self._out / JSON).write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
            (self._out / HTML).write_text(page("gpu_check.html", result=result), encoding="utf-8")


def _free(setting: Setting) -> None:
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
