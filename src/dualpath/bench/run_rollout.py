"""What ``dualpath bench rollout`` does: a fresh cluster for each system, the same agents on all, one report."""

from __future__ import annotations

import asyncio
import json
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

from dualpath.bench.compare import Changes, compare_rollouts, differing_systems, report
from dualpath.bench.settings import BenchSettings, RolloutSettings, as_json, serve_config, system_names
from dualpath.bench.terminal import print_rollout
from dualpath.bench.weight_steps import make_steps
from dualpath.bench.workload import Script, max_context_tokens, scripts_of, vocabulary
from dualpath.core.errors import ConfigError
from dualpath.core.ids import BlockKey
from dualpath.report.outputs import writing
from dualpath.report.progress import RunProgress
from dualpath.scheduler.service import Service
from dualpath.store.contract import BlockDirectory
from dualpath.store.open import below, parse_url
from dualpath.trace import Trajectory, infinite_cache_hits, load_trace

if TYPE_CHECKING:
    from dualpath.cluster.composition import ServingCluster

DRAIN_S = 30.0


class Opener(Protocol):
    """Makes each system's cluster, with a store that nobody has used."""

    @property
    def kv_dtype(self) -> str:
        """Once a cluster has been opened."""
        ...

    @property
    def measured(self) -> Mapping[str, Mapping[str, Any]]:
        """By system: more entries of its results, once its cluster is closed."""
        ...

    def open(self, system: str) -> AbstractAsyncContextManager[Service]: ...


MakeOpener = Callable[[RolloutSettings, list[Script], Console], Opener]


def run(settings: RolloutSettings) -> int:
    """On clusters of this machine. See ``run_on``."""
    return run_on(ClusterOpener, settings)


def run_on(make_opener: MakeOpener, settings: RolloutSettings) -> int:
    """Compare, print, write. Exit code 1 if systems that compute in fp32 do not generate the same tokens."""
    console = Console()
    trajectories = load_agents(settings)
    scripts = scripts_of(trajectories, seed=settings.workload.seed, vocab=vocabulary(vocab_size(settings.model.dir)))
    opener = make_opener(settings, scripts, console)
    hits = infinite_cache_hits(trajectories, block_tokens=settings.store.block_tokens)
    result = asyncio.run(_compare(settings, opener, scripts, hits.token_rate, console))
    print_rollout(console, result)
    return check_tokens(console, result["systems"], opener.kv_dtype)


def load_agents(settings: RolloutSettings) -> list[Trajectory]:
    work = settings.workload
    return load_trace(
        work.trace, agents=work.agents, rounds=work.rounds, scale=work.scale, think=work.think, seed=work.seed
    )


async def _compare(
    settings: RolloutSettings, opener: Opener, scripts: list[Script], hit_rate: float, console: Console
) -> dict[str, Any]:
    """What is done is written at once: a long comparison that is interrupted keeps the systems that have finished."""
    systems, cluster, runs = system_names(settings.workload.systems), settings.cluster, []
    with _changes(settings, opener, scripts) as changes:
        async for run in compare_rollouts(opener.open, systems, scripts, RunProgress(console), changes):
            runs.append(run)
            result = report(as_json(settings), cluster.prefill, cluster.decode, hit_rate, runs)
            for name, more in opener.measured.items():
                result["systems"][name] |= more
            write_outputs(settings, result)
    return result


@contextmanager
def _changes(settings: RolloutSettings, opener: Opener, scripts: Sequence[Script]) -> Iterator[Changes | None]:
    """All weights that will be needed, before anything runs. Raises ConfigError where they cannot be changed."""
    every = settings.workload.update_every
    if every is None:
        yield None
        return
    if not isinstance(opener, ClusterOpener):
        raise ConfigError("--update-every: only dualpath bench rollout changes weights")
    count = sum(len(script.steps) for script in scripts) // every
    with tempfile.TemporaryDirectory(prefix="dualpath-weights-", ignore_cleanup_errors=True) as scratch:
        yield Changes(make_steps(settings.model.dir, Path(scratch), count), every, opener.wipe)


def vocab_size(model_dir: Path) -> int:
    """From config.json: of the text part, if the model has several."""
    try:
        config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
        size = config.get("vocab_size") or config["text_config"]["vocab_size"]
        return int(size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"cannot read the vocabulary's size from {model_dir}/config.json: {error}") from None


class ClusterOpener:
    """Clusters on this machine: engines in this process, or vLLM servers."""

    def __init__(self, settings: RolloutSettings, scripts: list[Script], console: Console) -> None:
        self._settings, self._console = settings, console
        self._num_agents = len(scripts)
        self._context_tokens = max_context_tokens(scripts)
        self.kv_dtype = "unknown"
        self._cluster: ServingCluster | None = None
        self.measured: dict[str, dict[str, Any]] = {}

    @asynccontextmanager
    async def open(self, system: str) -> AsyncIterator[Service]:
        async with self.open_cluster(system) as cluster:
            yield cluster.service

    async def wipe(self) -> None:
        """Delete all that the cluster which is open has stored."""
        assert self._cluster is not None
        index, store = self._cluster.index, self._cluster.shelved
        keys = index.known()
        await asyncio.to_thread(_delete, store, keys)
        for key in keys:
            index.forget(key)

    @asynccontextmanager
    async def open_cluster(self, system: str) -> AsyncIterator[ServingCluster]:
        """Started; closed at the end, after a failure at once."""
        from dualpath.serving.pick import pick_cluster  # loads what engines need: not where these are other processes

        with fresh_store(self._settings.store.url, system) as url:
            config = serve_config(self._settings, system, url, self._context_tokens, self._num_agents)
            with self._console.status(f"{system}: starting") as status:
                cluster, _ = pick_cluster(config, lambda line: status.update(f"{system}: {line}"))
                await cluster.start()
            self.kv_dtype = cluster.namespace.kv_dtype
            self._cluster = cluster
            try:
                yield cluster
            except BaseException:
                await cluster.close(0.0)
                raise
            await cluster.close(DRAIN_S)


def _delete(store: BlockDirectory, keys: Sequence[BlockKey]) -> None:
    for key in keys:
        store.delete(key)


@contextmanager
def fresh_store(url: str | None, system: str) -> Iterator[str]:
    """A store URL for one system: a temporary directory, or a new and lasting place inside the store that was named."""
    if url is None:
        with tempfile.TemporaryDirectory(prefix="dualpath-bench-", ignore_cleanup_errors=True) as directory:
            yield f"file://{directory}"
        return
    scheme, base, _ = parse_url(url)
    if scheme == "memory":
        yield f"memory://bench-{system}-{uuid.uuid4().hex}"
        return
    if scheme == "s3":
        yield below(url, f"{system}-{uuid.uuid4().hex[:8]}")
        return
    try:
        Path(base).mkdir(parents=True, exist_ok=True)
        directory = tempfile.mkdtemp(prefix=f"{system}-", dir=base)
    except OSError as error:
        raise ConfigError(f"--store: cannot write to {base}: {error.strerror or error}") from None
    yield f"file://{directory}"


def write_outputs(settings: BenchSettings, result: dict[str, Any]) -> None:
    output = settings.output
    if output.json is not None:
        with writing(output.json):
            output.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if output.html is not None:
        from dualpath.bench.html import render

        with writing(output.html):
            output.html.write_text(render(result), encoding="utf-8")


def check_tokens(console: Console, systems: dict[str, Any], kv_dtype: str) -> int:
    wrong = differing_systems(systems)
    if not wrong:
        return 0
    names = ", ".join(wrong)
    if kv_dtype != "float32":
        console.print(f"Tokens differ in {names}: in {kv_dtype} the composition of a batch can change the last bits.")
        return 0
    console.print(f"[bold red]TOKENS DIFFER: {names} did not generate what {next(iter(systems))} did, in fp32.[/]")
    return 1
