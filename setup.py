"""What pyproject.toml cannot say: with DUALPATH_COMPILE=1 the simulator's inner loop is compiled to C by mypyc.

The same sources, the same results bit for bit, less than half the time for each simulated request. It needs a C
compiler and mypy. Without it everything is plain Python, which is what a developer wants: what is edited is what runs.
"""

from __future__ import annotations

import os

from setuptools import Extension, setup

COMPILE = os.environ.get("DUALPATH_COMPILE", "0") == "1"

# Two libraries, so that the simulator calls the policies through their modules, as it does in plain Python.
LIBRARIES = {
    "dualpath_policies": {
        "scheduler/policy": ("cost", "decode_choice", "path_choice", "quota"),
    },
    "dualpath_sim": {
        "scheduler/policy": ("engine_load", "least_loaded", "prefill_choice", "waiting", "waiting_room"),
        "sim": ("cost", "failures", "gauges", "metrics", "observer", "roles", "updates"),
        "sim/engines": ("collectives", "decode", "fifo_link", "node", "prefill"),
        "sim/requests": (
            "agenda",
            "agent",
            "decode_steps",
            "events",
            "fetch_times",
            "life",
            "placing",
            "prefill_steps",
            "reading",
            "request",
            "storage",
        ),
    },
}


def compiled() -> list[Extension]:
    from mypyc.build import mypycify

    extensions = []
    for library, folders in LIBRARIES.items():
        paths = [f"src/dualpath/{folder}/{module}.py" for folder, modules in folders.items() for module in modules]
        options = ["--config-file=mypyc.ini", *paths]
        extensions += mypycify(options, opt_level="2", debug_level="0", multi_file=True, group_name=library)
    return extensions


os.environ.setdefault("MYPYPATH", "src")
setup(ext_modules=compiled() if COMPILE else [])
