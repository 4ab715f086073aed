"""Table 1: gigabytes of KV to load for each PFLOP of prefill. Arithmetic; nothing is simulated."""

from __future__ import annotations

from dualpath.sim.catalogue.convention import CONVENTIONS
from dualpath.sim.catalogue.find import find_model
from dualpath.sim.paper.experiment import Experiment, Outcomes
from dualpath.sim.paper.rows import Report, Row, bars_of
from dualpath.sim.ratio import TABLE_1_APPEND, TABLE_1_CONTEXTS, TABLE_1_RATIOS, cache_compute_ratio, ratio_row

MEAN_CONTEXT, MEAN_RATIO = 32_721, 22.0  # section 3: DeepSeek-V3.2 at the 64K trace's mean context
LATENT_NOTE = "the nearest convention: no indexer keys, no rotary scores; the paper does not say what it counts"


def _report(_: Outcomes, __: bool) -> Report:
    rows = []
    convention = CONVENTIONS["table1"]
    for name in TABLE_1_RATIOS:
        is_latent = name.startswith("DeepSeek")
        found = ratio_row(find_model(name), None, TABLE_1_CONTEXTS, TABLE_1_APPEND, convention)
        for point in found.points:
            label = f"{point.num_cached // 1024}K"
            rows.append(
                Row(
                    f"table1.{name}.{label}",
                    f"{name}, {label}",
                    "GB/PFLOP",
                    point.paper,
                    point.gb_per_pflop,
                    is_latent,
                    LATENT_NOTE if is_latent else "",
                )
            )
    model = find_model("DeepSeek-V3.2")
    ours = cache_compute_ratio(model.shape, model.kv_dtype, MEAN_CONTEXT, TABLE_1_APPEND, convention)
    rows.append(
        Row("table1.DeepSeek-V3.2.mean", "DeepSeek-V3.2, 32.7K", "GB/PFLOP", MEAN_RATIO, ours, True, LATENT_NOTE)
    )
    return Report(
        rows, [bars_of("Cache-compute ratio", "GB/PFLOP", rows)], "429 new tokens after a context of 16K or 64K."
    )


EXPERIMENT = Experiment("table1", "Table 1: cache-compute ratio", lambda _: (), _report)
