"""Real vLLM servers as child processes, in an environment of vLLM's own: what the tests marked ``vllm`` run against."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualpath.cluster.free_ports import free_ports
from dualpath.vllm.settings import WEIGHTS_ARGUMENTS, ConnectorSettings, transfer_config

REPOSITORY = Path(__file__).parents[2]
SOURCES = REPOSITORY / "src"
PYTHON_VARIABLE = "DUALPATH_VLLM_PYTHON"
SECRET = "a secret of nobody, for tests alone"
MAX_MODEL_LEN = 4096
DTYPE = os.environ.get("DUALPATH_VLLM_DTYPE", "float32")  # in others KV that is computed anew may round differently
START_S = 240.0


def vllm_python() -> Path | None:
    """An interpreter that has vLLM. ``make test-vllm`` makes and names one."""
    named = os.environ.get(PYTHON_VARIABLE)
    return Path(named).absolute() if named else None


def environment() -> dict[str, str]:
    """Of every process with vLLM: one thread, loopback, quiet."""
    return dict(
        os.environ,
        OMP_NUM_THREADS="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_HOST_IP="127.0.0.1",
        UCX_TLS="tcp,self",
        UCX_NET_DEVICES="lo",
        VLLM_NO_USAGE_STATS="1",
        VLLM_SERVER_DEV_MODE="1",  # /reset_prefix_cache
        PYTHONPATH=f"{SOURCES}:{REPOSITORY}",  # tests.vllm.faulty_connector, too
        PYTHONDONTWRITEBYTECODE="1",
        HF_HUB_OFFLINE="1",
        DUALPATH_SECRET=SECRET,
    )


@dataclass
class VllmServer:
    """``settings`` None: plain vLLM."""

    name: str
    model: Path
    log: Path
    settings: ConnectorSettings | None = None
    options: Sequence[str] = ()
    variables: dict[str, str] = field(default_factory=dict)
    is_faulty: bool = False  # with ``tests.vllm.faulty_connector``
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def command(self) -> list[str]:
        command = [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--enforce-eager", "--enable-scale-out"]
        command += ["--kv-cache-memory-bytes", str(128 << 20), "--max-model-len", str(MAX_MODEL_LEN)]
        command += ["--max-num-seqs", "8", "--dtype", DTYPE, "--disable-uvicorn-access-log", *self.options]
        if self.settings is not None:
            faulty = {"kv_connector": "FaultyConnector", "kv_connector_module_path": "tests.vllm.faulty_connector"}
            told = transfer_config(self.settings) | (faulty if self.is_faulty else {})
            command += [*WEIGHTS_ARGUMENTS, "--kv-transfer-config", json.dumps(told)]
        return command

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=environment() | self.variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it serves. Raises RuntimeError with the end of its log where it ends, or takes too long."""
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s:
            if self.exit_code() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"{self.name} does not serve:\n{self.tail()}")

    def exit_code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def tail(self, num_chars: int = 4000) -> str:
        return self.log.read_text(errors="replace")[-num_chars:]

    def kill(self) -> None:
        """As a machine does that loses its power: the API server and its engine."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def reset_prefix_cache(self) -> None:
        self.post("/reset_prefix_cache", {})

    def metric(self, name: str) -> float:
        """The sum of all of vLLM's series of this name."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} "))]
        if not values:
            raise KeyError(f"{name}: vLLM has no such metric")
        return sum(values)

    def post(self, path: str, body: Any) -> bytes:
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), headers, method="POST")
        with urllib.request.urlopen(asked, timeout=120) as answer:
            content: bytes = answer.read()
        return content


def make_model(where: Path) -> Path:
    """A small random llama with a byte tokenizer. Its answers depend on all that came before."""
    command = [sys.executable, "-m", "dualpath", "model", "init", "--family", "llama", "--out", str(where)]
    sizes = {"layers": 8, "hidden": 256, "heads": 8, "kv-heads": 4, "head-dim": 32, "intermediate": 512}
    for name, value in {**sizes, "max-context-tokens": 8192, "dtype": "bfloat16", "vocab-size": 1024}.items():
        command += [f"--{name}", str(value)]
    subprocess.run(command, check=True, env=dict(os.environ, PYTHONPATH=str(SOURCES)))
    return where
