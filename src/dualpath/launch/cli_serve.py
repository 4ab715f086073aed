"""``dualpath serve``: flags and a TOML file become a ``ServeConfig``, which ``launch.serve`` runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dualpath.config import ServeConfig, load_config
from dualpath.config.flags import add_flags, given_flags

DESCRIPTION = """\
Serve a model behind an OpenAI-compatible API, prefill and decode on separate engines, KV kept on storage.

Every setting has a default, may stand in a TOML file (--config) and may be given as a flag; flags win over the file,
the file wins over defaults. The groups below are the file's tables and the names in it are the settings' own, e.g.
  [cluster]
  prefill = 1
  decode = 2
"""


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "serve",
        help="serve a model with prefill and decode engines",
        description=DESCRIPTION,
        formatter_class=_Formatter,
        usage="dualpath serve --model DIR --store URL [--prefill N] [--decode N] [options]",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings; flags win over it")
    add_flags(parser, ServeConfig)
    parser.set_defaults(run=_serve)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the description's lines and gives long flags room."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)


def _serve(arguments: argparse.Namespace) -> int:
    config = load_config(ServeConfig, arguments.config, given_flags(arguments, ServeConfig))
    if config.nodes:
        from dualpath.launch.ray.system import run_in_foreground

        return run_in_foreground(config, lambda line: print(line, flush=True))
    from dualpath.launch.serve import run

    return run(config)
