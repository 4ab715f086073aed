"""aider: a task without a person, by which it writes a file; and a second one in the same conversation."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

URL = os.environ["DUALPATH_URL"]


def aider(home: Path, work: Path, task: str, *flags: str) -> str:
    command = [Path(sys.executable).with_name("aider"), "--model", "openai/scripted", "--message", task]
    command += ["--yes-always", "--no-git", "--no-check-update", "--no-analytics", "--no-show-model-warnings"]
    environment = {"HOME": str(home), "OPENAI_API_BASE": f"{URL}/v1", "OPENAI_API_KEY": "-"}
    done = subprocess.run(
        [*command, *flags], capture_output=True, text=True, cwd=work, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-300:]
    return done.stdout


def main(home: Path, work: Path) -> None:
    for mode in ("--stream", "--no-stream"):
        file = work / "hello.txt"
        file.write_text("nothing yet\n")
        said = aider(home, work, "Say it in hello.txt.", mode, "hello.txt")
        assert file.read_text() == "dualpath-was-here\n", said[-300:]
    assert "Hello" in aider(home, work, "Say hello.", "--chat-mode", "ask", "--restore-chat-history")


with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
    main(Path(one), Path(other))
