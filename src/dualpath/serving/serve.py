"""What ``dualpath serve`` does: start the cluster, open the gateway, wait for a signal, and leave nothing behind.

The first Ctrl-C or SIGTERM lets running requests end (exit code 0), or ends a start that is under way (130). The second
one ends at once (130).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dualpath.cluster.otel import install_sink, remove_sink
from dualpath.cluster.setup import keep_loaded, set_up_process
from dualpath.cluster.signals import Stopper
from dualpath.cluster.vllm.plan import check as check_servers
from dualpath.config import GatewayConfig, ServeConfig
from dualpath.core.errors import ConfigError
from dualpath.preflight.ports import ports_here, why_not_listen
from dualpath.preflight.run import quick
from dualpath.scheduler.policy.systems import system_policy
from dualpath.serving.pick import pick_cluster
from dualpath.store.open import check_url

if TYPE_CHECKING:
    from dualpath.cluster.composition import ServingCluster
    from dualpath.cluster.gateway import GatewayCluster
    from dualpath.gateway.defaults import SamplingDefaults
    from dualpath.gateway.passthrough.upstream import Upstream
    from dualpath.gateway.settings import GatewaySettings


def run(config: ServeConfig) -> int:
    """Serve until told to stop; returns the exit code. Raises DualPathError when the start fails."""
    check(config)
    quick(config, _say)
    set_up_process(config)
    _say(f"loading model {config.model.dir}")
    from dualpath.gateway.http.server import run as run_loop  # from here on torch and friends are needed

    return run_loop(_run(config))


async def _run(config: ServeConfig) -> int:
    stopper = Stopper(_say, config.gateway.drain_s)
    serving = _serve(config, stopper)
    return await stopper.guard(serving)


async def _serve(config: ServeConfig, stopper: Stopper) -> int:
    cluster, upstream = pick_cluster(config, _say)
    await serve_cluster(
        config,
        cluster,
        upstream=upstream,
        stop=stopper.stop,
        on_started=stopper.started,
        on_listening=lambda host, port: _say(f"listening on {url_of(host, port)}"),
        closing_s=lambda: 0.0 if stopper.forced else config.gateway.drain_s,
    )
    _say("stopped")
    return 0


async def serve_cluster(
    config: ServeConfig,
    cluster: ServingCluster | GatewayCluster,
    *,
    upstream: Upstream | None = None,
    stop: asyncio.Event,
    on_started: Callable[[], None],
    on_listening: Callable[[str, int], None],
    closing_s: Callable[[], float],
    other_ports: Sequence[int] = (),
) -> None:
    """Start the cluster, serve it over HTTP until ``stop``, close it; ``closing_s`` says how long requests then get.

    ``other_ports``: to listen on where the configured one is taken.
    """
    from dualpath.gateway.app import create_app
    from dualpath.gateway.defaults import read_defaults
    from dualpath.gateway.http.server import serve
    from dualpath.gateway.metrics import Metrics
    from dualpath.gateway.text.tokenizer import Tokenizer
    from dualpath.serving.replay import replay

    gateway = config.gateway
    settings, metrics = gateway_settings(gateway, read_defaults(config.model.dir)), Metrics()
    if config.cluster.engine == "vllm":
        # Two servers sample one answer, each by its own generator and its own part.
        settings = replace(settings, takes_seeds=False, holds_forms=False)
    tokenizer = await asyncio.to_thread(Tokenizer.load, config.model.dir)
    spans = install_sink(config.observe, "gateway")
    await cluster.start()
    try:
        app = create_app(cluster.service, tokenizer, settings, metrics, upstream, replay)
        keep_loaded()
        on_started()
        await serve(
            app,
            gateway.host,
            gateway.port,
            drain_s=closing_s,
            stop=stop,
            handle_signals=False,
            on_listening=on_listening,
            limits=settings.connections,
            refusals=metrics.refusals,
            other_ports=other_ports,
        )
    finally:
        await _shielded(cluster.close(closing_s()))
        await asyncio.to_thread(remove_sink, spans)


def gateway_settings(gateway: GatewayConfig, sampling: SamplingDefaults) -> GatewaySettings:
    from dualpath.gateway.settings import ConnectionLimits, GatewaySettings

    return GatewaySettings(
        api_keys=gateway.api_keys,
        admin_keys=gateway.admin_keys,
        share_cache=gateway.share_cache,
        allowed_origins=gateway.allowed_origins,
        tool_call_parser=gateway.tool_call_parser,
        reasoning_parser=gateway.reasoning_parser,
        stream_ping_s=gateway.stream_ping_s,
        sampling=sampling,
        max_body_bytes=gateway.max_body_bytes,
        body_memory_bytes=gateway.body_memory_bytes,
        admission_timeout_s=gateway.admission_timeout_s,
        connections=ConnectionLimits(
            max_connections=gateway.max_connections,
            header_timeout_s=gateway.header_timeout_s,
            body_timeout_s=gateway.body_timeout_s,
            keep_alive_s=gateway.keep_alive_s,
            send_timeout_s=gateway.send_timeout_s,
        ),
    )


async def _shielded(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end even when we are being cancelled meanwhile; the stopper's own deadline bounds it."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def check(config: ServeConfig) -> None:
    """Find out in a moment what would otherwise fail after minutes of loading."""
    if not config.model.dir.is_dir():
        raise ConfigError(f"no such model directory: {config.model.dir}")
    check_url(config.store.url)
    check_answers(config)
    if config.cluster.engine == "vllm":
        check_servers(config)
    trace = config.observe.trace_out
    if trace is not None and (trace.is_dir() or not os.access(trace.absolute().parent, os.W_OK)):
        raise ConfigError(f"cannot write the trace to {trace}")
    check_listening(config)


def check_listening(config: ServeConfig) -> None:
    """Raises ConfigError where an address of a gateway that will run here is not this machine's, or taken."""
    for port in ports_here(config):
        reason = why_not_listen(config.gateway.host, port)
        if reason is not None:
            raise ConfigError(reason)


def check_answers(config: ServeConfig) -> None:
    """Nobody gets an invalid answer who did not ask for it."""
    cluster = config.cluster
    if system_policy(cluster.system, cluster.path).skips_io and not cluster.allow_invalid_answers:
        raise ConfigError(f"--system {cluster.system} gives invalid answers; --allow-invalid-answers true allows them")


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _say(line: str) -> None:
    print(line, flush=True)
