"""``dualpath batch``: a file of requests in, a file of answers out, no server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dualpath.config import ServeConfig, load_config
from dualpath.config.flags import add_flags, given_flags
from dualpath.core.errors import ConfigError
from dualpath.launch.cli_bench import check_writable, quiet_process
from dualpath.launch.serve import check_answers
from dualpath.launch.signals import sigterm_as_interrupt
from dualpath.store.open import check_url

DESCRIPTION = """\
Answer a file of requests in OpenAI's Batch format (custom_id, method, url, body), without a server. One answer a
line, in the order of the requests; what is wrong with a request is said in its own line. Settings are those of serve.
"""


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "batch",
        help="answer a file of requests in OpenAI's Batch format",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="dualpath batch IN OUT --model DIR --store URL [options]",
    )
    parser.add_argument("source", type=Path, metavar="IN", help="JSONL of requests")
    parser.add_argument("target", type=Path, metavar="OUT", help="JSONL of answers; replaced if it exists")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings; flags win over it")
    parser.add_argument(
        "--max-concurrent", type=int, default=64, metavar="N", help="requests served at a time (default: 64)"
    )
    add_flags(parser, ServeConfig)
    parser.set_defaults(run=_batch)


def _batch(arguments: argparse.Namespace) -> int:
    config = load_config(ServeConfig, arguments.config, given_flags(arguments, ServeConfig))
    if not 1 <= arguments.max_concurrent <= config.scheduler.max_queued_requests:
        raise ConfigError(f"--max-concurrent: must be between 1 and {config.scheduler.max_queued_requests}")
    check_answers(config)
    check_url(config.store.url)
    if not config.model.dir.is_dir():
        raise ConfigError(f"no such model directory: {config.model.dir}")
    if not arguments.source.is_file():
        raise ConfigError(f"{arguments.source}: no such file")
    check_writable("OUT", arguments.target)
    if arguments.target.exists() and arguments.target.samefile(arguments.source):
        raise ConfigError("IN and OUT are the same file")
    quiet_process()
    from dualpath.launch.batch import run

    with sigterm_as_interrupt():
        return run(config, arguments.source, arguments.target, arguments.max_concurrent)
