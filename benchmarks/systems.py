"""The claims of dual-path loading, measured on emulated storage NICs: gains, equalities, balance, overhead, latency.

Each cluster shape is one ``dualpath bench rollout`` of the same agents; everything is a ratio of runs that followed one
another on the same machine. What to expect comes from arithmetic and from the paper (arXiv 2602.21548, section 7).
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from dualpath.bench.demo_model import random_model

TRACE = "--trace synth:64K --scale 0.03 --seed 1"
RUNS = {  # name: (flags, systems)
    "1P2D": ("--prefill 1 --decode 2 --agents 24 --rounds 12", "basic,layerwise,round_robin,shorter,split,oracle"),
    "1P1D": ("--prefill 1 --decode 1 --agents 24 --rounds 12", "basic,shorter,split"),
    "2P1D": ("--prefill 2 --decode 1 --agents 24 --rounds 12", "basic,shorter,split"),
    "alone": ("--prefill 1 --decode 1 --agents 1 --rounds 30", "shorter,split"),
    "fast": ("--prefill 1 --decode 1 --agents 12 --rounds 16", "oracle,shorter,split"),
}

Report = dict[str, Any]


def rollout(model_dir: Path, out_dir: Path, name: str, nic_mbps: float) -> Report:
    flags, systems = RUNS[name]
    out = out_dir / f"{name}.json"
    nic = "" if name == "fast" else f"--storage-nic-mbps {nic_mbps:g}"
    command = f"bench rollout --model {model_dir} {TRACE} {flags} {nic} --systems {systems} --json {out}"
    print(f"== {name}: dualpath {command}", flush=True)
    subprocess.run([sys.executable, "-m", "dualpath", *shlex.split(command)], check=True)
    report: Report = json.loads(out.read_text())
    return report


def claims(reports: dict[str, Report]) -> list[tuple[str, float, str]]:
    """(what, measured, what to expect)."""

    def jct(run: str, system: str) -> float:
        return float(reports[run]["systems"][system]["jct_s"])

    wide = reports["1P2D"]["systems"]
    turn_s = jct("1P2D", "basic") / wide["basic"]["requests"]
    compute_s = jct("1P2D", "oracle") / wide["oracle"]["requests"]
    found = [("reading a turn / computing it (Basic / Oracle, 1P2D)", turn_s / compute_s, "at least 6")]
    found += [
        (f"JCT Basic / {system}, {shape}", jct(shape, "basic") / jct(shape, system), f"limit {limit:g}")
        for shape, limit in (("1P1D", 2.0), ("1P2D", 3.0), ("2P1D", 1.5))
        for system in ("shorter", "split")
    ]
    found += [
        ("JCT Basic 1P1D / Basic 1P2D", jct("1P1D", "basic") / jct("1P2D", "basic"), "1"),
        ("JCT shorter 1P1D / Basic 2P1D", jct("1P1D", "shorter") / jct("2P1D", "basic"), "1"),
        ("JCT shorter 2P1D / shorter 1P2D", jct("2P1D", "shorter") / jct("1P2D", "shorter"), "1"),
        ("JCT split / shorter at saturation, 1P1D", jct("1P1D", "split") / jct("1P1D", "shorter"), "at most 1"),
    ]
    steps = ("basic", "layerwise", "round_robin", "shorter")
    found += [
        (f"JCT {later} / {earlier}, 1P2D", jct("1P2D", later) / jct("1P2D", earlier), "at most 1")
        for earlier, later in itertools.pairwise(steps)
    ]
    found += [(f"SNIC max/avg, {name}, 1P2D", wide[name]["snic_max_avg"], "1") for name in (*steps[2:], "split")]
    alone = reports["alone"]["systems"]
    found.append(
        (
            "TTFT split / shorter, one agent",
            alone["split"]["ttft_s"]["mean"] / alone["shorter"]["ttft_s"]["mean"],
            "0.5",
        )
    )
    found += [
        (f"JCT {name} / Oracle, no NIC limit", jct("fast", name) / jct("fast", "oracle"), "1")
        for name in ("shorter", "split")
    ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage-nic-mbps", type=float, default=80.0, help="of every node (default: 80)")
    parser.add_argument("--out-dir", type=Path, help="keep the reports here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out_dir = arguments.out_dir or Path(scratch)
        out_dir.mkdir(parents=True, exist_ok=True)
        model_dir = random_model(Console(), Path(scratch))
        reports = {name: rollout(model_dir, out_dir, name, arguments.storage_nic_mbps) for name in RUNS}
    print(f"\n{'what':<52}{'measured':>9}  expected")
    for what, measured, expected in claims(reports):
        print(f"{what:<52}{measured:>9.3f}  {expected}")


if __name__ == "__main__":
    main()
