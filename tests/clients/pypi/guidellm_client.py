"""GuideLLM: conversations of two turns through chat and responses, to reports without errors."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

URL = os.environ["DUALPATH_URL"]
MODEL_DIR = os.environ["DUALPATH_MODEL_DIR"]
NUM_REQUESTS, NUM_PROMPT_TOKENS, NUM_TOKENS = 6, 120, 12


def measure(out: Path, route: str) -> dict:
    """The one benchmark of the report."""
    backend = {"kind": "openai_http", "target": URL, "model": Path(MODEL_DIR).name, "request_format": route}
    data = {"kind": "synthetic_text", "prompt_tokens": NUM_PROMPT_TOKENS, "output_tokens": NUM_TOKENS, "turns": 2}
    given = {
        "backend": backend,
        "profile": {"kind": "concurrent", "streams": 2},
        "constraint": {"kind": "max_requests", "count": NUM_REQUESTS},
        "tokenizer": {"kind": "hf_auto", "model": MODEL_DIR},
        "data": data,
        "output": {"kind": "json", "path": out},
    }
    command = [Path(sys.executable).with_name("guidellm"), "run", "--disable-console"]
    for flag, fields in given.items():
        command += [f"--{flag}", ",".join(f"{name}={value}" for name, value in fields.items())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out.parent)
    assert done.returncode == 0, (done.stderr or done.stdout)[-500:]
    (benchmark,) = json.loads(out.read_text())["benchmarks"]
    return benchmark


def main(folder: Path) -> None:
    for route in ("/v1/chat/completions", "/v1/responses"):
        benchmark = measure(folder / f"{route.replace('/', '-')}.json", route)
        metrics = benchmark["metrics"]
        counts = metrics["request_totals"]
        # It leaves out what it counts as warming up or cooling down.
        assert counts["successful"] == counts["total"] >= NUM_REQUESTS // 2, f"{route}: {counts}"
        assert metrics["time_to_first_token_ms"]["successful"]["mean"] > 0


with tempfile.TemporaryDirectory() as name:
    main(Path(name))
