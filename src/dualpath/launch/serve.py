"""What ``dualpath serve`` does: start the cluster, open the gateway, wait for a signal, and leave nothing behind.

The first Ctrl-C or SIGTERM lets running requests end (exit code 0), or ends a start that is under way (130). The second
one ends at once (130).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from dualpath.config import GatewayConfig, ServeConfig
from dualpath.core.errors import ConfigError
from dualpath.launch.setup import set_up_process
from dualpath.launch.signals import Stopper
from dualpath.scheduler.systems import system_policy
from dualpath.store.open import check_url

if TYPE_CHECKING:
    from dualpath.gateway.defaults import SamplingDefaults
    from dualpath.gateway.settings import GatewaySettings
    from dualpath.launch.composition import Cluster


def run(config: ServeConfig) -> int:
    """Serve until told to stop; returns the exit code. Raises DualPathError when the start fails."""
    check(config)
    set_up_process(config)
    _say(f"loading model {config.model.dir}")
    from dualpath.gateway.server import run as run_loop  # from here on torch and friends are needed

    return run_loop(_run(config))


async def _run(config: ServeConfig) -> int:
    stopper = Stopper(_say, config.gateway.drain_s)
    serving = _serve(config, stopper)
    return await stopper.guard(serving)


async def _serve(config: ServeConfig, stopper: Stopper) -> int:
    from dualpath.launch.cluster import EmbeddedCluster
    from dualpath.models.families import check_model_dir

    check_model_dir(config.model.dir)
    await serve_cluster(
        config,
        EmbeddedCluster(config, progress=_say),
        stop=stopper.stop,
        on_started=stopper.started,
        on_listening=lambda host, port: _say(f"listening on {url_of(host, port)}"),
        closing_s=lambda: 0.0 if stopper.forced else config.gateway.drain_s,
    )
    _say("stopped")
    return 0


async def serve_cluster(
    config: ServeConfig,
    cluster: Cluster,
    *,
    stop: asyncio.Event,
    on_started: Callable[[], None],
    on_listening: Callable[[str, int], None],
    closing_s: Callable[[], float],
) -> None:
    """Start the cluster, serve it over HTTP until ``stop``, close it; ``closing_s`` says how long requests then get."""
    from dualpath.gateway.app import create_app
    from dualpath.gateway.defaults import read_defaults
    from dualpath.gateway.metrics import Metrics
    from dualpath.gateway.server import serve
    from dualpath.gateway.tokenizer import Tokenizer

    gateway = config.gateway
    settings, metrics = gateway_settings(gateway, read_defaults(config.model.dir)), Metrics()
    tokenizer = await asyncio.to_thread(Tokenizer.load, config.model.dir)
    await cluster.start()
    try:
        app = create_app(cluster.service, tokenizer, settings, metrics)
        on_started()
        await serve(
            app,
            gateway.host,
            gateway.port,
            drain_s=gateway.drain_s,
            stop=stop,
            handle_signals=False,
            on_listening=on_listening,
            limits=settings.connections,
            refusals=metrics.refusals,
        )
    finally:
        await _shielded(cluster.close(closing_s()))


def gateway_settings(gateway: GatewayConfig, sampling: SamplingDefaults) -> GatewaySettings:
    from dualpath.gateway.settings import ConnectionLimits, GatewaySettings

    return GatewaySettings(
        api_keys=gateway.api_keys,
        admin_keys=gateway.admin_keys,
        share_cache=gateway.share_cache,
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
    trace = config.observe.trace_out
    if trace is not None and (trace.is_dir() or not os.access(trace.absolute().parent, os.W_OK)):
        raise ConfigError(f"cannot write the trace to {trace}")
    is_elsewhere = config.ray.address is not None and any(node.role == "gateway" for node in config.nodes)
    if not is_elsewhere:
        check_listening(config)


def check_listening(config: ServeConfig) -> None:
    """Raises ConfigError where the gateway's address is not this machine's, or taken."""
    host, port = config.gateway.host, config.gateway.port
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


def check_answers(config: ServeConfig) -> None:
    """Nobody gets an invalid answer who did not ask for it."""
    cluster = config.cluster
    if system_policy(cluster.system, cluster.path).skips_io and not cluster.allow_invalid_answers:
        raise ConfigError(f"--system {cluster.system} gives invalid answers; --allow-invalid-answers true allows them")


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _say(line: str) -> None:
    print(line, flush=True)
