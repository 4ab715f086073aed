"""AIPerf: made-up prompts through messages and a recorded trace through chat, to reports without errors.

Its reports must know what it has asked for, and the server's own metrics, which it reads beside.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

URL = os.environ["DUALPATH_URL"]
MODEL_DIR = os.environ["DUALPATH_MODEL_DIR"]
NUM_REQUESTS, NUM_TOKENS = 6, 12
METRICS = {"vllm:prompt_tokens", "vllm:generation_tokens", "vllm:time_to_first_token_seconds"}


def profile(out: Path, endpoint: str, *flags: str) -> dict:
    """The report. Raises AssertionError where there is none, or one with failures."""
    command = [Path(sys.executable).with_name("aiperf"), "profile", "--model", Path(MODEL_DIR).name, "--url", URL]
    command += ["--endpoint-type", endpoint, "--streaming", "--tokenizer", MODEL_DIR, "--ui", "none"]
    command += ["--use-server-token-count", "--workers-max", "1", "--record-processors", "1"]
    command += ["--concurrency", "2", "--random-seed", "1", "--output-artifact-dir", out, *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out.parent)
    assert done.returncode == 0, (done.stderr or done.stdout)[-500:]
    report = json.loads((out / "profile_export_aiperf.json").read_text())
    assert not report.get("error_summary"), report["error_summary"]
    assert report["request_count"]["avg"] == NUM_REQUESTS
    assert report["time_to_first_token"]["avg"] > 0
    return report


def main(folder: Path) -> None:
    profile(folder / "messages", "messages", "--request-count", str(NUM_REQUESTS), "--isl", "150", "--osl", "12")
    rows = [
        {"timestamp": 100 * i, "input_length": 600, "output_length": NUM_TOKENS, "hash_ids": [1, 2 + i // 2]}
        for i in range(NUM_REQUESTS)
    ]
    trace = folder / "trace.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--input-file", str(trace), "--custom-dataset-type", "mooncake_trace", "--fixed-schedule")
    report = profile(folder / "trace", "chat", *flags)
    assert report["output_sequence_length"]["avg"] == NUM_TOKENS, report["output_sequence_length"]
    metrics = json.loads((folder / "trace" / "server_metrics_export.json").read_text())["metrics"]
    assert metrics.keys() >= METRICS, METRICS - metrics.keys()


with tempfile.TemporaryDirectory() as name:
    main(Path(name))
