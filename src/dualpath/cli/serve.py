"""``dualpath serve``: flags and a TOML file become a ``ServeConfig``, which ``serving.serve`` runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualpath.cli.command import Given, add_command
from dualpath.cli.operate.check import print_config
from dualpath.config import ServeConfig, load_config
from dualpath.config.fields import Options, setting


class _Options(Options):
    """Serve a model behind an OpenAI-compatible API, prefill and decode on separate engines, KV kept on storage.

    Every setting has a default, may stand in a TOML file (--config) and may be given as a flag; flags win over the
    file, the file wins over defaults. The groups below are the file's tables, the names in them the settings' own, e.g.

      [cluster]
      prefill = 1
      decode = 2
    """

    config: Path | None = setting(None, metavar="FILE", help="TOML file of settings; flags win over it")
    dry_run: bool = setting(False, help="print the resolved configuration and do nothing else")


def add(verbs: Any) -> None:
    text = "serve a model with prefill and decode engines"
    usage = "dualpath serve --model DIR --store URL [--prefill N] [--decode N] [options]"
    add_command(verbs, "serve", text, _serve, _Options, root=ServeConfig, usage=usage)


def _serve(options: _Options, given: Given) -> int:
    config = load_config(ServeConfig, options.config, given)
    if options.dry_run:
        return print_config(config, options.config, given)
    if config.nodes:
        from dualpath.ray.system import run_in_foreground

        return run_in_foreground(config, lambda line: print(line, flush=True))
    from dualpath.serving.serve import run

    return run(config)
