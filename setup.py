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
    "dualpath_policies": ("scheduler", ("cost", "decode_choice", "path_choice", "prefill_choice", "quota")),
    "dualpath_sim": (
        "sim",
        (
            "agenda",
            "agent",
            "collectives",
            "cost",
            "decode",
            "decode_steps",
            "events",
            "failures",
            "fetch_times",
            "fifo_link",
            "gauges",
            "life",
            "metrics",
            "node",
            "observer",
            "placing",
            "prefill",
            "prefill_steps",
            "reading",
            "request",
            "roles",
        ),
    ),
}


def compiled() -> list[Extension]:
    from mypyc.build import mypycify

    extensions = []
    for library, (package, modules) in LIBRARIES.items():
        paths = [f"src/dualpath/{package}/{module}.py" for module in modules]
        options = ["--config-file=mypyc.ini", *paths]
        extensions += mypycify(options, opt_level="2", debug_level="0", multi_file=True, group_name=library)
    return extensions


os.environ.setdefault("MYPYPATH", "src")
setup(ext_modules=compiled() if COMPILE else [])
