"""The demonstration: agents on an emulated cluster, first loaded through the prefill side alone, then through both.

Afterwards the comparison as a user would type it, ``dualpath bench rollout``, for four systems, with its report.
"""

from __future__ import annotations

import asyncio
import shlex
import shutil
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
from dualpath.bench.server import running_server, store_url
from dualpath.core.errors import ConfigError

PREFILL_NODES, DECODE_NODES = 1, 2
STORAGE_NIC_MBPS = 320.0
# Cheap to compute and heavy to load, like a large model on a GPU: 9 million weights, 48 KiB of KV a token.
MODEL_SIZES: dict[str, Any] = {
    "layers": 6,
    "hidden": 256,
    "heads": 16,
    "kv_heads": 16,
    "head_dim": 64,
    "intermediate": 512,
}
ROLLOUT_FLAGS = (
    "--trace synth:64K --scale 0.03 --agents 8 --rounds 8 --systems basic,shorter,split,oracle"
    f" --prefill {PREFILL_NODES} --decode {DECODE_NODES} --storage-nic-mbps 160"
)
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Run:
    """One replay: the turns, what the server recorded of them, and how long all took."""

    path: str
    turns: dict[tuple[int, int], Turn]
    records: dict[str, dict[str, Any]]
    total_s: float

    def record(self, turn: Turn) -> dict[str, Any]:
        return self.records[turn.request_id]


def run(work_dir: Path, *, path: str = "split", script: Script | None = None) -> int:
    """Show it on the terminal. Returns the exit code: 1 if the two paths did not give the same tokens."""
    console, model_dir = Console(), work_dir / "model"
    if not (model_dir / "config.json").is_file():
        _make_model(console, model_dir)
    script = script or Script()
    _explain(console, script)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as progress:
        runs = [asyncio.run(_replay(model_dir, name, script, progress)) for name in ("prefill", path)]
    return _report(console, script, *runs)


def run_rollout(work_dir: Path) -> int:
    """Compare four systems on the model that ``run`` made. Returns the command's exit code."""
    console, page = Console(), work_dir / "report.html"
    flags = ["--model", str(work_dir / "model"), *ROLLOUT_FLAGS.split(), "--html", str(page)]
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


def _make_model(console: Console, model_dir: Path) -> None:
    from dualpath.models.init import init_model

    start_s = time.perf_counter()
    if model_dir.exists():
        raise ConfigError(f"{model_dir} exists but holds no model; remove it and start again")
    parent = _parent(model_dir)
    console.print(f"Making a small random model in {model_dir} ...")
    with tempfile.TemporaryDirectory(dir=parent) as scratch:  # an interrupted run leaves no half model
        shutil.move(init_model("llama", Path(scratch) / "model", **MODEL_SIZES), model_dir)
    console.print(f"  done in {time.perf_counter() - start_s:.1f} s")


def _parent(directory: Path) -> Path:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--work-dir: cannot make {directory.parent}: {error.strerror or error}") from None
    return directory.parent


def _explain(console: Console, script: Script) -> None:
    limit = (PREFILL_NODES + DECODE_NODES) / PREFILL_NODES
    console.print(
        f"\n{script.num_agents} agents, {script.num_turns} turns each, on {PREFILL_NODES} prefill and"
        f" {DECODE_NODES} decode nodes in one process; every node has a storage NIC emulated at"
        f" {STORAGE_NIC_MBPS:g} Mbit/s.\n"
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
        flags += ["--storage-nic-mbps", f"{STORAGE_NIC_MBPS:g}", "--max-context-tokens", "8192"]
        async with running_server(flags) as url:
            client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=120.0, max_retries=0)
            start_s = time.perf_counter()
            async with client:
                turns = await replay(client, model_dir.name, script, lambda _: progress.advance(task))
            total_s = time.perf_counter() - start_s
            async with httpx.AsyncClient() as http:
                answer = (await http.get(f"{url}/v1/dualpath/requests", params={"limit": 1000})).json()
    records = {record["request_id"]: record for record in answer["data"]}
    return Run(path, {(t.agent, t.turn): t for t in turns}, records, total_s)


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
    if wrong:
        console.print(f"[bold red]{len(wrong)} turns differ between the two runs: this is a bug.[/bold red]")
        return 1
    console.print(f"Tokens of all {len(dual.turns)} turns are the same on both paths.")
    return 0


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
