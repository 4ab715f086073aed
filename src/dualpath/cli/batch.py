"""``dualpath batch``: a file of requests in, a file of answers out, no server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualpath.cli.bench import check_writable
from dualpath.cli.command import Given, add_command
from dualpath.cluster.setup import quiet_process
from dualpath.cluster.signals import interrupted_by_signals
from dualpath.config import ServeConfig, load_config
from dualpath.config.fields import Options, setting
from dualpath.core.errors import ConfigError
from dualpath.serving.serve import check_answers
from dualpath.store.open import check_url


class _Options(Options):
    """Answer a file of requests in OpenAI's Batch format (custom_id, method, url, body), without a server. One answer a
    line, in the order of the requests; what is wrong with a request is said in its own line. Settings are those of
    serve.
    """

    source: Path = setting(positional=True, metavar="IN", help="JSONL of requests")
    target: Path = setting(positional=True, metavar="OUT", help="JSONL of answers; replaced if it exists")
    config: Path | None = setting(None, metavar="FILE", help="TOML file of settings; flags win over it")
    max_concurrent: int = setting(64, help="requests served at a time")


def add(verbs: Any) -> None:
    text = "answer a file of requests in OpenAI's Batch format"
    usage = "dualpath batch IN OUT --model DIR --store URL [options]"
    add_command(verbs, "batch", text, _batch, _Options, root=ServeConfig, usage=usage)


def _batch(options: _Options, given: Given) -> int:
    config = load_config(ServeConfig, options.config, given)
    if not 1 <= options.max_concurrent <= config.scheduler.max_queued_requests:
        raise ConfigError(f"--max-concurrent: must be between 1 and {config.scheduler.max_queued_requests}")
    check_answers(config)
    check_url(config.store.url)
    if not config.model.dir.is_dir():
        raise ConfigError(f"no such model directory: {config.model.dir}")
    if not options.source.is_file():
        raise ConfigError(f"{options.source}: no such file")
    check_writable("OUT", options.target)
    if options.target.exists() and options.target.samefile(options.source):
        raise ConfigError("IN and OUT are the same file")
    quiet_process()
    from dualpath.serving.batch import run

    with interrupted_by_signals():
        return run(config, options.source, options.target, options.max_concurrent)
