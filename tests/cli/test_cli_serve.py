"""A server's life as its user sees it: progress, the address, signals, exit codes. The cluster is a fake."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from dualpath.cluster.signals import SAME_WISH_S

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0


class Server:
    """A child process whose output is collected as it comes."""

    def __init__(self, model_dir: Path, *flags: str, **environment: str) -> None:
        flags = flags if "--port" in flags else (*flags, "--port", "0")
        command = [sys.executable, "-m", "tests.cli.fake_serve", "serve", "--model", str(model_dir), *flags]
        self.process = subprocess.Popen(
            [*command, "--store", "memory://"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(line.rstrip("\n") for line in iter(self.process.stdout.readline, ""))

    def until(self, pattern: str) -> str:
        """Wait for a line that matches; its first group."""
        end_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < end_s:
            for line in list(self.lines):
                if match := re.search(pattern, line):
                    return match[1] if match.groups() else line
            if self.process.poll() is not None and not self._reader.is_alive():
                break
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in {self.lines}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def interrupt_again(self) -> None:
        """As a person does it, not the double signal of a process group that counts once."""
        time.sleep(1.5 * SAME_WISH_S)
        self.signal(signal.SIGINT)

    def exit_code(self) -> int:
        code = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        return code


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    servers: list[Server] = []
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for name in ("model.safetensors", "tokenizer.json"):  # for a look at what is there
        (tmp_path / name).write_text("{}")

    def run(*flags: str, **environment: str) -> Server:
        servers.append(Server(tmp_path, *flags, **environment))
        return servers[-1]

    yield run
    for server in servers:
        server.process.kill()
        server.process.wait()


class Answer:
    """GET /answer in a thread: two lines, with a pause between them."""

    def __init__(self, url: str) -> None:
        self.lines: list[str] = []
        self.begun = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(url,), daemon=True)
        self._thread.start()
        assert self.begun.wait(DEADLINE_S)

    def _read(self, url: str) -> None:
        try:
            with httpx.stream("GET", f"{url}/answer", timeout=DEADLINE_S) as response:
                for line in response.iter_lines():
                    self.lines.append(line)
                    self.begun.set()
        except httpx.TransportError:
            self.lines.append("broken")

    def all(self) -> list[str]:
        self._thread.join(DEADLINE_S)
        return self.lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_says_how_it_goes_and_one_signal_ends_it_in_order(
    start: Start, number: signal.Signals, tmp_path: Path
) -> None:
    server = start("--drain-s", "9")
    url = server.until(r"listening on (http://127\.0\.0\.1:\d+)$")
    assert httpx.get(f"{url}/given").json() == ["the service", f"tokenizer of {tmp_path.name}", []]
    server.signal(number)
    assert server.exit_code() == 0
    assert server.lines[0].startswith("loading model ")
    assert server.lines[1:] == [
        "starting",
        "prefill0 ready on cpu",
        f"listening on {url}",
        "stopping: running requests get up to 9 s; Ctrl-C again stops at once",
        "closed with 9 s to drain",
        "stopped",
    ]


def test_a_terminal_that_is_closed_ends_it_in_order(start: Start) -> None:
    master, terminal = os.openpty()
    command = start().process.args
    assert isinstance(command, list)
    process = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        os.close(terminal)
        said = b""
        while b"listening on" not in said:
            said += os.read(master, 4096)
        os.close(master)  # and the kernel sends SIGHUP
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()


def test_a_running_request_ends_before_the_server_does(start: Start) -> None:
    server = start(FAKE_ANSWER_S="1")
    answer = Answer(server.until(r"listening on (\S+)"))
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0
    assert answer.all() == ["begin", "end"]


def test_the_second_signal_does_not_wait_for_running_requests(start: Start) -> None:
    server = start("--drain-s", "50", FAKE_ANSWER_S="50")
    answer = Answer(server.until(r"listening on (\S+)"))
    server.signal(signal.SIGINT)
    server.until("stopping: running requests")
    server.interrupt_again()
    assert server.exit_code() == 130
    assert server.lines[-2:] == ["stopping at once", "closed with 0 s to drain"]
    assert answer.all() == ["begin", "broken"]


def test_a_close_that_hangs_is_cut_off_after_the_second_signal(start: Start) -> None:
    server = start("--drain-s", "0", FAKE_CLOSE_S="50")
    server.until("listening on")
    server.signal(signal.SIGINT)
    server.until("stopping: ")
    server.interrupt_again()
    assert server.exit_code() == 130


def test_a_signal_while_it_starts(start: Start) -> None:
    server = start(FAKE_START_S="50")
    server.until("^starting$")
    server.signal(signal.SIGINT)
    assert server.exit_code() == 130
    assert server.lines[-1] == "stopping before the start is complete; Ctrl-C again stops at once"


def test_a_failed_start_is_one_line(start: Start) -> None:
    server = start(FAKE_START_ERROR="the store is made of sand")
    assert server.exit_code() == 2
    assert server.lines[-1] == "dualpath: error: the store is made of sand"
    assert "Traceback" not in "\n".join(server.lines)


def test_a_port_in_use_is_found_before_anything_is_loaded(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start("--port", str(port))
        assert server.exit_code() == 2
    assert server.lines == [f"dualpath: error: cannot listen on 127.0.0.1:{port}: Address already in use"]


def test_api_keys_reach_the_gateway(start: Start) -> None:
    server = start("--api-key", "first", "--api-key", "second")
    url = server.until(r"listening on (\S+)")
    assert httpx.get(f"{url}/given").json()[2] == ["first", "second"]
