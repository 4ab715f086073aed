"""A temporary copy of a commit, in which one mutant at a time is tried: a package's tests, then worlds."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

TESTS = {
    "scheduler": ("tests/scheduler",),
    "traffic": ("tests/traffic", "tests/contract/test_t*.py"),
    "store": ("tests/store", "tests/contract/test_store.py"),
    "engine": ("tests/engine",),
    "protocol": ("tests/protocol",),
    "gateway": ("tests/gateway",),
}
_MAX_DATA_KIB = 8 << 20  # of a process: a mutant that allocates for ever harms nobody else
_WORLDS = """
import logging, sys
from dualpath.testing.explore import explore
logging.disable(logging.CRITICAL)
found = explore(range({})).found
print(*(module.__file__ for name, module in sys.modules.items() if name.startswith("dualpath.")), sep="\\n")
sys.exit(bool(found))
"""


class Checkout:
    """``source`` is the package dualpath in it."""

    def __init__(self, folder: Path, archive: bytes) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.source = folder / "src" / "dualpath"
        with tarfile.open(fileobj=BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(folder / "src")], check=True)

    @contextmanager
    def changed(self, path: str, text: str) -> Iterator[None]:
        """One file of the package has another text meanwhile."""
        file = self.source / path
        original = file.read_text()
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
            compiled.unlink()  # it may look as new as the source
        file.write_text(text)
        try:
            yield
        finally:
            file.write_text(original)

    def run_tests(self, package: str, timeout_s: float, first: str = "") -> str | None:
        """None: all pass. Else what does not. Tests that name the file ``first`` come first.

        A test that fails once, and then passes alone, is not believed: a busy machine does that. All are run again.
        """
        places = [place for pattern in TESTS[package] for place in sorted(self._folder.glob(pattern))]
        files = [file for place in places for file in (sorted(place.rglob("test_*.py")) if place.is_dir() else [place])]
        module = "dualpath." + first.removesuffix(".py").replace("/", ".")
        files.sort(key=lambda file: module not in file.read_text())
        names = [str(file.relative_to(self._folder)) for file in files]
        failure = self._failing_test(names, timeout_s)
        if failure is None or "::" not in failure or self._failing_test([failure], timeout_s) is not None:
            return failure
        return self._failing_test(names, timeout_s)

    def run_worlds(self, num_seeds: int, timeout_s: float) -> tuple[str | None, set[str]]:
        """None: nothing is wrong with any. And the files of the package that they have loaded."""
        code, output = self._run(["-c", _WORLDS.format(num_seeds)], timeout_s)
        files = [Path(line) for line in output.splitlines() if line.startswith(f"{self.source}/")]
        loaded = {file.relative_to(self.source).as_posix() for file in files}
        return None if code == 0 else f"a world: {_ending(code)}", loaded

    def stop(self) -> None:
        """End what runs here, from another thread."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _failing_test(self, names: Sequence[str], timeout_s: float) -> str | None:
        """The first one, or how it ends otherwise."""
        options = ["-x", "-q", "--tb=no", "-m", "not slow", "-p", "no:cacheprovider"]
        code, output = self._run(["-m", "pytest", *options, *names], timeout_s)
        failed = [line.split(" ", 1)[1] for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        return None if code == 0 else failed[0].split(" - ")[0] if failed else _ending(code)

    def _run(self, arguments: Sequence[str], timeout_s: float) -> tuple[int | None, str]:
        """Exit status, None if it had to be ended, and what it printed."""
        environment = os.environ | {"PYTHONPATH": str(self.source.parent), "PYTHONDONTWRITEBYTECODE": "1"}
        limited = ["sh", "-c", f'ulimit -d {_MAX_DATA_KIB}; exec "$@"', "sh", sys.executable, *arguments]
        with tempfile.TemporaryFile() as output:
            self._process = process = subprocess.Popen(
                limited,
                cwd=self._folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code: int | None = None
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout_s)
            finally:
                self.stop()  # with all that it has started
                process.wait()
                self._process = None
            output.seek(0)
            return code, output.read().decode(errors="replace")


def _ending(code: int | None) -> str:
    return "it hangs" if code is None else f"exit status {code}"
