"""Beyond the paper: what traffic classes are worth to a model whose experts are spread over nodes. No targets."""

from __future__ import annotations

from dualpath.sim.paper.experiment import Experiment, Outcomes
from dualpath.sim.paper.rows import Report, Row
from dualpath.sim.paper.run import Run, Setting

# DeepSeek-V3 (arXiv 2412.19437): hidden size 7168, 58 layers with experts, dispatch in FP8, combine in BF16, and a
# token's experts on four nodes at most.
TOKEN_BYTES = 7168 * (1 + 2) * 58 * 4
BYTES: tuple[Setting, ...] = (
    ("model.prefill_collective_bytes", TOKEN_BYTES),
    ("model.decode_collective_bytes", TOKEN_BYTES),
)


def _run(has_classes: bool) -> Run:
    return Run("660B", "shorter", 1, 2, 512, settings=(*BYTES, ("cluster.traffic_classes", has_classes)))


def _runs(_: bool) -> list[Run]:
    return [_run(True), _run(False)]


def _report(outcomes: Outcomes, _: bool) -> Report:
    on, off = (outcomes[run] for run in _runs(False))
    on_ms, off_ms = ((one.tpot_s or 0) * 1e3 for one in (on, off))
    rows = [
        Row("beyond_classes.tpot", "without classes, TPOT", "%", None, 100 * (off_ms / on_ms - 1), False,
            f"{on_ms:.1f} ms to {off_ms:.1f} ms"),
        Row("beyond_classes.jct", "without classes, JCT", "%", None, 100 * (off.jct_s / on.jct_s - 1), False,
            f"{on.jct_s:.0f} s to {off.jct_s:.0f} s"),
    ]  # fmt: skip
    text = (
        f"660B, 1P2D, 512 agents, experts spread over nodes: {TOKEN_BYTES / 1e6:.1f} MB of collectives a token and"
        " compute NIC. In the mean; where one step meets a burst of KV is what dualpath fabric check measures."
    )
    return Report(rows, text=text)


EXPERIMENT = Experiment("beyond_classes", "Beyond: traffic classes", _runs, _report)
