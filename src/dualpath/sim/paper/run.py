"""One simulation that an experiment asks for, and the few numbers that are kept of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dualpath.core.errors import ConfigError
from dualpath.sim.paper.constants import model_spec
from dualpath.sim.results import rollout_json, serving_json
from dualpath.sim.simulation import simulate
from dualpath.sim.spec import SimSpec

BALANCE_WINDOW_S = 5.0
Setting = tuple[str, float | str]  # "table.key" and its value, beside the model's constants


@dataclass(frozen=True, slots=True)
class Run:
    """Hashable: the same run is made once for all experiments that need it. ``aps`` None: all agents at once."""

    model: str
    system: str
    prefill_nodes: int
    decode_nodes: int
    agents: int = 0
    aps: float | None = None
    trace: str = "64K"
    settings: tuple[Setting, ...] = ()

    @property
    def spec(self) -> SimSpec:
        """Raises ConfigError for settings that there are not."""
        spec = model_spec(self.model)
        spec = replace(
            spec,
            cluster=replace(spec.cluster, prefill_nodes=self.prefill_nodes, decode_nodes=self.decode_nodes),
            workload=replace(spec.workload, trace=f"synth:{self.trace}", agents=max(1, self.agents), aps=self.aps),
            scheduler=replace(spec.scheduler, systems=self.system),
        )
        for name, value in self.settings:
            table, key = name.split(".")
            spec = replace(spec, **{table: replace(getattr(spec, table), **{key: value})})
        return spec

    @property
    def weight(self) -> float:
        """About how many agents' lives it simulates; the longest runs are started first."""
        work = self.spec.workload
        return self.agents if self.aps is None else self.aps * (work.warm_up_s + work.duration_s)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Means over requests; None: not measured. ``impossible``: why it could not be run, else empty."""

    jct_s: float = 0.0
    ttft_s: float | None = None
    ttft_p99_s: float | None = None
    ttst_s: float | None = None
    tpot_s: float | None = None
    snic_max_avg: float | None = None  # mean over the windows of the series
    snic_traffic_max_avg: float | None = None  # of the bytes, in windows of BALANCE_WINDOW_S
    attention_first: float | None = None
    working_set_bytes: float = 0.0
    meets_slo: bool = True
    phases_s: Mapping[str, float] | None = None
    utilisation: Mapping[str, Mapping[str, float]] | None = None
    impossible: str = ""


def execute(run: Run) -> Outcome:
    """Simulate; a cluster on which the longest request does not fit is an outcome, too."""
    spec = run.spec
    try:
        done = simulate(spec, spec.model.cost(), run.system)
    except ConfigError as error:
        return Outcome(impossible=str(error))
    found: dict[str, Any] = rollout_json(done) if run.aps is None else serving_json(done)
    return Outcome(
        jct_s=done.observer.end_s,
        ttft_s=found["ttft_s"].get("mean"),
        ttft_p99_s=found["ttft_s"].get("p99"),
        ttst_s=found["ttst_s"].get("mean"),
        tpot_s=found["tpot_s"].get("mean"),
        snic_max_avg=found["snic_max_avg"],
        snic_traffic_max_avg=traffic_max_avg(found["nic_series"], round(BALANCE_WINDOW_S / spec.output.window_s)),
        attention_first=found["attention_max_avg"],
        working_set_bytes=found["working_set_bytes"]["mean"],
        meets_slo=found.get("meets_slo", True),
        phases_s={name: one["mean"] for name, one in found["phases_s"].items()},
        utilisation=found["utilisation"],
    )


def traffic_max_avg(series: Mapping[str, Sequence[float]], windows: int) -> float | None:
    """Bytes of every window's most loaded node over bytes of its mean node, both summed over all windows.

    ``windows`` of the series, which are of one length, are taken together. A window counts with what moved in it, so
    that a second with a single read, which is never balanced, hardly does. None: nothing moved.
    """
    whole = min((len(one) for one in series.values()), default=0) // windows * windows
    loads = np.array([one[:whole] for one in series.values()])
    if not loads.any():
        return None
    loads = loads.reshape(len(loads), -1, windows).sum(axis=2)
    return float(loads.max(axis=0).sum() / loads.mean(axis=0).sum())
