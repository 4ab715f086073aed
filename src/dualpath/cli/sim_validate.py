"""``dualpath sim validate``: is the simulator right about the cluster that runs here?"""

from __future__ import annotations

from typing import Any

from dualpath.cli.command import Given, add_command
from dualpath.cluster.setup import quiet_process
from dualpath.config import load_config
from dualpath.core.errors import ConfigError
from dualpath.report.outputs import check_outputs
from dualpath.validation.settings import ValidateSettings, check, reject_per_shape

DESCRIPTION = """\
Run the embedded cluster as bench rollout does, and the simulator on the same agents, sizes and limits; compare time to
completion, times to first token and what every storage NIC moved. The model's costs are its profile's (measured first
where there is none), what a request costs the host beside that is measured by one agent alone. All engines of the live
cluster share this machine's cores, the simulated ones do not: choose --storage-nic-mbps low enough that reading, not
computing, is what takes the time. Where policies look at load, the live system does not move the same bytes twice
through a NIC, nor does the simulator when requests take a millisecond more: so it runs five times, and the live side as
often as --repeat says. Exit code 1 if mean JCT is off by more than 10 %, or if what a NIC moved in the live runs and in
the simulated ones lies more than 2 % apart. Every number is shown with its spread and error.
"""


def add(actions: Any) -> None:
    text = "the simulator beside the live embedded cluster"
    add_command(actions, "validate", text, _run, root=ValidateSettings, description=DESCRIPTION)


def _run(given: Given) -> int:
    from dualpath.sim.compiled import require_current

    require_current()
    reject_per_shape(given)
    settings = load_config(ValidateSettings, None, given)
    check(settings)
    if not settings.model.dir.is_dir():
        raise ConfigError(f"no such model directory: {settings.model.dir}")
    quiet_process()
    check_outputs({"--json": settings.output.json, "--write-spec": settings.output.write_spec})
    from dualpath.validation.simulator import run

    return run(settings)
