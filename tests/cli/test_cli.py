"""The command line: what it accepts, and that everything it refuses is one line and the right exit code."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from dualpath import __version__
from dualpath.cli import main as cli
from dualpath.cli.main import main
from dualpath.core.errors import ConfigError, OverloadedError

OK = ["--model", "/m", "--store", "memory://"]

BAD_INPUT = [
    ([], "the following arguments are required: COMMAND"),
    (["fly"], "argument COMMAND: invalid choice: 'fly'"),
    (["--colour"], "the following arguments are required: COMMAND"),
    (["serve"], "--model is required"),
    (["serve", "--model", "/m"], "--store is required"),
    (["serve", "--model"], "argument --model: expected one argument"),
    (["serve", *OK, "--prot", "1"], "unrecognized arguments: --prot 1"),
    (
        ["up", "--config", "F", "--gateway", "2"],
        "unrecognized arguments: --gateway 2 (did you mean --gateways?) (see dualpath up --help)",
    ),
    (["store", "ls", "--store", "kv"], "unrecognized arguments: --store (see dualpath store ls --help)"),
    (["serve", *OK, "--pre", "1"], "unrecognized arguments: --pre 1"),  # no abbreviations
    (["serve", *OK, "--port", "70000"], "--port: must be at most 65535, not 70000"),
    (["serve", *OK, "--port", "x\ny"], "--port: must be a whole number, not 'x\\ny'"),
    (["serve", *OK, "--prefill", "0"], "--prefill: must be at least 1, not 0"),
    (["serve", *OK, "--prefill", "-2"], "--prefill: must be at least 1, not -2"),
    (["serve", *OK, "--path", "both"], "--path: must be one of prefill, decode, shorter, split"),
    (["serve", *OK, "--storage-nic-mbps", "nan"], "--storage-nic-mbps: must be a finite number"),
    (["serve", *OK, "--storage-nic-mbps", "fast"], "--storage-nic-mbps: must be a number, not 'fast'"),
    (["serve", *OK, "--block-tokens", "0"], "--block-tokens: must be at least 1, not 0"),
    (["serve", *OK, "--dtype", "int8"], "--dtype: must be one of auto, float32, bfloat16, float16, not 'int8'"),
    (["serve", *OK, "--device", "tpu"], "--device: must be auto, cpu, cuda or cuda:N, not 'tpu'"),
    (["serve", *OK, "--config", "/no/such.toml"], "/no/such.toml: No such file or directory"),
    (["serve", *OK], "no such model directory: /m"),
    (["serve", "--model", "/", "--store", "ftp://x"], "ftp://x: unknown store scheme 'ftp'"),
    (["serve", "--model", "/", "--store", "file://host/x"], "file://host/x: a file URL needs an absolute path"),
    (
        ["serve", "--model", "/", "--store", "memory://", "--trace-out", "/no/dir/t"],
        "cannot write the trace to /no/dir/t",
    ),
    (["serve", "--model", "/", "--store", "memory://", "--host", "256.0.0.1"], "cannot listen on 256.0.0.1:8000"),
    (["model"], "the following arguments are required: COMMAND"),
    (["model", "init"], "the following arguments are required: --family, --out"),
    (
        ["model", "init", "--family", "llama", "--out", "/x", "--layers", "two"],
        "--layers: must be a whole number, not 'two'",
    ),
    (["demo", "--work-dir", "/proc/x"], "--work-dir: cannot make /proc/x: No such file or directory"),
    (["demo", "--work-dir", "/dev/null"], "--work-dir: cannot make /dev/null: File exists"),
    (["store", "ls"], "the following arguments are required: URL"),
    (["store", "ls", "file:///no/such/dir"], "file:///no/such/dir: there is no such directory"),
    (["store", "verify", "memory://"], "memory://: only file and s3 stores can be inspected"),
]


@pytest.mark.parametrize(("arguments", "reason"), BAD_INPUT, ids=lambda value: str(value)[:60])
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"dualpath: error: {reason}")
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_a_mistake_in_the_config_file_names_file_table_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[gateway]\nprot = 1\n")
    assert main(["serve", *OK, "--config", str(file)]) == 2
    assert capsys.readouterr().err == f"dualpath: error: {file}: [gateway] prot: unknown key (did you mean port?)\n"


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_version(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "dualpath", *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"dualpath {__version__}\n", "")


@pytest.mark.parametrize("verb", [[], ["serve"], ["model"], ["model", "init"], ["store", "verify"], ["demo"]])
def test_help(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([*verb, "--help"])
    assert raised.value.code == 0
    assert capsys.readouterr().out.startswith("usage: dualpath")


def test_help_of_serve_lists_every_table_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for fragment in ("--prefill N", "--decode-staging-bytes SIZE", "(default: 1GiB)", "(default: 8000)", "--model DIR"):
        assert fragment in text


def test_help_needs_nothing_heavy() -> None:
    program = "import sys; from dualpath.cli.main import build_parser; build_parser(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "'dualpath.cli.serve'" in done.stdout
    for heavy in ("torch", "transformers", "fastapi", "nixl", "ray"):
        assert f"'{heavy}'" not in done.stdout


INTERRUPTED_IMPORT = """
import sys

class CtrlC:
    def find_spec(self, name, *_):
        if name == "dualpath.cli.demo":
            raise KeyboardInterrupt

sys.meta_path.insert(0, CtrlC())
from dualpath.cli.main import main
sys.exit(main(["version"]))
"""


def test_ctrl_c_while_the_commands_are_imported_is_one_line_too() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "dualpath: error: interrupted\n")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("two\nlines"), 2, "two lines"),
        (OverloadedError("too much"), 1, "too much"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "cannot write: No space left on device"),
        (ValueError("odd"), 1, "ValueError: odd (this is a bug; DUALPATH_TRACEBACK=1 shows where)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_fails_is_one_line(
    error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_print_version", fail)
    monkeypatch.delenv(cli.TRACEBACK_VARIABLE, raising=False)
    assert main(["version"]) == code
    assert capsys.readouterr().err == f"dualpath: error: {text}\n"


def test_a_traceback_for_those_who_ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(cli.TRACEBACK_VARIABLE, "1")
    monkeypatch.setattr(cli, "_print_version", lambda _: 1 // 0)
    assert main(["version"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err
