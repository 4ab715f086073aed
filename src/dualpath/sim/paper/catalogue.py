"""All experiments in the paper's order, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dualpath.core.errors import ConfigError
from dualpath.sim.paper import (
    ablation,
    balance,
    beyond,
    bottleneck_range,
    classes,
    fig7,
    fig8,
    fig9,
    online,
    scale,
    table1,
    table2,
    working_set,
)
from dualpath.sim.paper.experiment import Experiment

_ALL = (
    *(module.EXPERIMENT for module in (table1, bottleneck_range, table2, fig7, fig8, fig9, online)),
    *(module.EXPERIMENT for module in (ablation, balance, scale, working_set)),
    *beyond.EXPERIMENTS,
    classes.EXPERIMENT,
)
EXPERIMENTS: Mapping[str, Experiment] = {one.id: one for one in _ALL}


def choose(only: str | None) -> Sequence[Experiment]:
    """By ids with commas between them; None: all. Raises ConfigError for an id that there is not."""
    if only is None:
        return _ALL
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in EXPERIMENTS:
            raise ConfigError(f"--only: no experiment {name!r}; choose from {', '.join(EXPERIMENTS)}")
    if not names:
        raise ConfigError(f"--only: names no experiment; choose from {', '.join(EXPERIMENTS)}")
    return [one for one in _ALL if one.id in names]
