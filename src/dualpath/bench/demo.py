"""The demonstration: agents on an emulated cluster, first loaded through the prefill side alone, then through both.

They ask a small real model about documents, or, where it cannot be had, a random one.
Afterwards the comparison as a user would type it, ``dualpath bench rollout``, for four systems, with its report.
"""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dualpath.bench.agents import Script, Turn, replay
from dualpath.bench.demo_model import NoModelError, random_model, real_model
from dualpath.bench.server import running_server, store_url
from dualpath.core.errors import ConfigError

PREFILL_NODES, DECODE_NODES = 1, 2
# It computes more than the random one for each byte of its KV, so NICs must be slower for them to be what binds.
_REAL_SCRIPT = Script(
    num_agents=2, num_turns=4, document_chars=5000, answer_tokens=20, storage_nic_mbps=80.0, ends_itself=True
)
ROLLOUT_FLAGS = (
    "--trace synth:64K --scale 0.03 --agents 8 --rounds 8 --systems basic,shorter,split,oracle"
    f" --prefill {PREFILL_NODES} --decode {DECODE_NODES} --storage-nic-mbps 160"
)
_TURN_LIMIT_S = 600.0  # a turn takes 10 to 20 s where the cores are free, and ten times that where they are not
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Run:
    """One replay: the turns, what the server recorded of them, and how long all took."""

    turns: dict[tuple[int, int], Turn]
    records: dict[str, dict[str, Any]]
    total_s: float

    def record(self, turn: Turn) -> dict[str, Any]:
        return self.records[turn.request_id]


def run(work_dir: Path, *, path: str = "split", script: Script | None = None, download: bool = True) -> int:
    """Show it on the terminal. Returns the exit code: 1 if the two paths did not give the same tokens."""
    console = Console()
    _make(work_dir)
    model_dir, script = _model(console, work_dir, script, download)
    _explain(console, script)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as progress:
        runs = [asyncio.run(_replay(model_dir, name, script, progress)) for name in ("prefill", path)]
    return _report(console, script, *runs)


def _model(console: Console, work_dir: Path, script: Script | None, download: bool) -> tuple[Path, Script]:
    try:
        if download:
            return real_model(console, work_dir), script or _REAL_SCRIPT
    except NoModelError as error:
        text = f"SmolLM2 cannot be had ({error}): a random model instead, whose words mean nothing."
        console.print(text, highlight=False, markup=False)
    return random_model(console, work_dir), script or Script()


def run_rollout(work_dir: Path) -> int:
    """Compare four systems on a model that is heavy to load. Returns the command's exit code."""
    console, page = Console(), work_dir / "report.html"
    _make(work_dir)
    flags = ["--model", str(random_model(console, work_dir)), *ROLLOUT_FLAGS.split(), "--html", str(page)]
    console.print("\nAgents as in the paper's 64K trace, all lengths times 0.03, on four systems:", highlight=False)
    console.print(f"  dualpath bench rollout {shlex.join(flags)}\n", soft_wrap=True, highlight=False)
    code = asyncio.run(_run_cli("bench", "rollout", *flags))
    if code == 0:
        console.print(f"\nThe whole comparison, with plots: {page.resolve().as_uri()}", soft_wrap=True)
    return code


async def _run_cli(*arguments: str) -> int:
    """However we end, the child is told so, once: in a session of its own it does not see the terminal's Ctrl-C."""
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", "dualpath", *arguments, start_new_session=True)
    try:
        return await child.wait()
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGINT)
            await child.wait()


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--work-dir: cannot make {directory}: {error.strerror or error}") from None


def _explain(console: Console, script: Script) -> None:
    limit = (PREFILL_NODES + DECODE_NODES) / PREFILL_NODES
    console.print(
        f"\n{script.num_agents} agents, {script.num_turns} turns each, on {PREFILL_NODES} prefill and"
        f" {DECODE_NODES} decode nodes in one process; every node has a storage NIC emulated at"
        f" {script.storage_nic_mbps:g} Mbit/s.\n"
        "First every turn's stored KV is read through the prefill node's NIC alone, then through all nodes' NICs.\n"
        f"Where reading is all that counts, the limit of the gain is (P+D)/P = {limit:g}x.\n"
    )


async def _replay(model_dir: Path, path: str, script: Script, progress: Progress) -> Run:
    from openai import AsyncOpenAI

    label = "prefill side alone" if path == "prefill" else f"both sides ({path})"
    task = progress.add_task(f"{label:<22}", total=script.num_agents * script.num_turns)
    with tempfile.TemporaryDirectory(prefix="dualpath-demo-") as directory:
        flags = ["--model", str(model_dir), "--store", store_url(Path(directory)), "--path", path]
        flags += ["--prefill", str(PREFILL_NODES), "--decode", str(DECODE_NODES)]
        flags += ["--storage-nic-mbps", f"{script.storage_nic_mbps:g}", "--max-context-tokens", "8192"]
        async with running_server(flags) as url:
            client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=_TURN_LIMIT_S, max_retries=0)
            start_s = time.perf_counter()
            async with client:
                turns = await replay(client, model_dir.name, script, lambda _: progress.advance(task))
            total_s = time.perf_counter() - start_s
            async with httpx.AsyncClient() as http:
                answer = (await http.get(f"{url}/v1/dualpath/requests", params={"limit": 1000})).json()
    records = {record["request_id"]: record for record in answer["data"]}
    return Run({(t.agent, t.turn): t for t in turns}, records, total_s)


def _report(console: Console, script: Script, base: Run, dual: Run) -> int:
    console.print(_table(base, dual))
    wrong = [key for key, turn in dual.turns.items() if turn.text != base.turns[key].text]
    hits = [key for key in dual.turns if dual.turns[key].cached_tokens]
    read = sum(_read_bytes(dual, dual.turns[key]) for key in hits)
    by_decode = sum(dual.record(dual.turns[key])["storage_read_bytes"]["decode"] for key in hits)
    slow = sum(base.turns[key].ttft_s for key in hits) / len(hits)
    fast = sum(dual.turns[key].ttft_s for key in hits) / len(hits)
    console.print(
        f"All turns: {base.total_s:.1f} s through the prefill side alone, {dual.total_s:.1f} s through both: "
        f"[bold]{base.total_s / dual.total_s:.2f}x[/bold]."
    )
    console.print(
        f"Time to first token of turns with stored KV: {slow:.2f} s against {fast:.2f} s: "
        f"[bold]{slow / fast:.2f}x[/bold]. Decode nodes' storage NICs brought {by_decode / read:.0%}"
        f" of {read / MIB:.0f} MiB."
    )
    if script.ends_itself:
        _tell(console, dual)
    if wrong:
        console.print(f"[bold red]{len(wrong)} turns differ between the two runs: this is a bug.[/bold red]")
        return 1
    console.print(f"Tokens of all {len(dual.turns)} turns are the same on both paths.")
    return 0


def _tell(console: Console, run: Run) -> None:
    """The conversation of the first agent."""
    console.print("\nWhat the first agent asked, and the answers (a model of 135 million weights):")
    for key in sorted(key for key in run.turns if key[0] == 0):
        turn = run.turns[key]
        console.print(f"  {turn.question}\n    {' '.join(turn.text.split())}", highlight=False, markup=False)
    console.print()


def _table(base: Run, dual: Run) -> Table:
    table = Table(
        title="Every turn, and the same turn read through the prefill side alone",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    headers = (
        "agent",
        "turn",
        "prompt",
        "hit",
        "path",
        "prefill\nNIC MiB",
        "decode\nNIC MiB",
        "time\ns",
        "alone\ns",
        "gain",
    )
    for header in headers:
        table.add_column(header, justify="left" if header == "path" else "right", no_wrap=True)
    for key in sorted(dual.turns):
        turn, alone = dual.turns[key], base.turns[key]
        record = dual.record(turn)
        sides = record["storage_read_bytes"]
        table.add_row(
            str(turn.agent),
            str(turn.turn + 1),
            str(turn.prompt_tokens),
            str(turn.cached_tokens),
            record["path"],
            *(f"{sides[side] / MIB:.1f}" if sides[side] else "-" for side in ("prefill", "decode")),
            f"{turn.latency_s:.2f}",
            f"{alone.latency_s:.2f}",
            f"{alone.latency_s / turn.latency_s:.2f}x",
        )
    return table


def _read_bytes(run: Run, turn: Turn) -> int:
    return sum(run.record(turn)["storage_read_bytes"].values())
