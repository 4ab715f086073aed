"""Change the data path in one place after the other; say which changes neither a package's tests nor worlds notice.

python -m dualpath.testing.mutants --count 126 --seed 0 --out mutants.txt
Everything runs in temporary copies of a commit. A change that makes something hang is noticed. Changes that were judged
to be equivalent, or to cost speed only, are in tests/mutants_equivalent.txt and count for nothing.
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from dualpath.testing.checkout import TESTS, Checkout
from dualpath.testing.mutations import Mutation, mutations

ROOT = Path(__file__).parents[3]
JUDGED = ROOT / "tests" / "mutants_equivalent.txt"
EXCLUDED = {
    "traffic/fabric/": "writes configurations that people apply",
    "traffic/fabric_check/": "programs of their own, which measure",
    "traffic/fake_transport.py": "a test's own",
    "engine/trace.py": "only writes a timeline",
}
_ONCE_MORE, _STARTING_S = 3, 60.0  # a run with a mutant may take so many times as long as one without, and this
_UNCHANGED_S = 3600.0
_Key = tuple[str, str, str]


class CannotTellError(Exception):
    """It cannot be said what is noticed."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """``path`` is below the package dualpath; ``before`` and ``after`` are the lines that change."""

    path: str
    mutation: Mutation
    before: str
    after: str

    @property
    def package(self) -> str:
        return self.path.split("/")[0]

    @property
    def key(self) -> _Key:
        return self.path, self.before, self.after

    @property
    def place(self) -> str:
        return f"{self.path}:{self.mutation.line}"


@dataclass(frozen=True, slots=True)
class Verdict:
    mutant: Mutant
    noticed_by: str  # "tests", "worlds" or "none"
    how: str = ""  # the test, for example


# -- what to change ---------------------------------------------------------------------------------------------------


def draw(source: Path, packages: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """Equally many of each package, as far as it has so many."""
    chosen = []
    for number, package in enumerate(packages):
        files = [file.relative_to(source).as_posix() for file in sorted((source / package).rglob("*.py"))]
        texts = {path: (source / path).read_text() for path in files if not path.startswith(tuple(EXCLUDED))}
        places = [(path, mutation) for path, text in texts.items() for mutation in mutations(text)]
        share = count // len(packages) + (number < count % len(packages))
        drawn = random.Random(f"{package} {seed}").sample(places, min(share, len(places)))
        chosen += [Mutant(path, mutation, *mutation.diff(texts[path])) for path, mutation in drawn]
    return chosen


def read_judged(text: str) -> dict[_Key, str]:
    """The reason of each. Three lines: ``path: reason``, ``- before``, ``+ after``; # begins a comment."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    judged = {}
    for head, before, after in itertools.zip_longest(lines[::3], lines[1::3], lines[2::3], fillvalue=""):
        path, _, reason = head.partition(": ")
        if not reason or before[:2] != "- " or after[:2] != "+ ":
            raise CannotTellError(f"{JUDGED.name} has something else than a path, - and + at {head!r}")
        judged[path, before[2:], after[2:]] = reason
    return judged


# -- trying them ------------------------------------------------------------------------------------------------------


class Trial:
    """What a mutant is compared with: how long tests and worlds take without it. There they must find nothing."""

    def __init__(self, checkout: Checkout, packages: Sequence[str], num_worlds: int) -> None:
        self._num_worlds = num_worlds
        self._tests_s: dict[str, float] = {}
        for package in packages:
            start_s = time.monotonic()
            self._check(f"tests of {package}", checkout.run_tests(package, _UNCHANGED_S))
            self._tests_s[package] = _ONCE_MORE * (time.monotonic() - start_s) + _STARTING_S
        start_s = time.monotonic()
        failure, self._in_worlds = checkout.run_worlds(num_worlds, _UNCHANGED_S)
        self._check("worlds", failure)
        self._worlds_s = _ONCE_MORE * (time.monotonic() - start_s) + _STARTING_S

    def of(self, mutant: Mutant, checkout: Checkout) -> Verdict:
        text = (checkout.source / mutant.path).read_text()
        with checkout.changed(mutant.path, mutant.mutation.apply(text)):
            failure = checkout.run_tests(mutant.package, self._tests_s[mutant.package], mutant.path)
            if failure is not None:
                return Verdict(mutant, "tests", failure)
            if mutant.path in self._in_worlds:
                failure, _ = checkout.run_worlds(self._num_worlds, self._worlds_s)
            return Verdict(mutant, "none") if failure is None else Verdict(mutant, "worlds", failure)

    def _check(self, name: str, failure: str | None) -> None:
        if failure is not None:
            raise CannotTellError(f"{name} fail without any change: {failure}")


def try_all(mutants: Sequence[Mutant], trial: Trial, checkouts: Sequence[Checkout]) -> list[Verdict]:
    free: SimpleQueue[Checkout] = SimpleQueue()
    for checkout in checkouts:
        free.put(checkout)
    numbers = itertools.count(1)

    def one(mutant: Mutant) -> Verdict:
        checkout = free.get()
        try:
            verdict = trial.of(mutant, checkout)
        finally:
            free.put(checkout)
        _say(f"{next(numbers)} of {len(mutants)}: {mutant.place} {verdict.noticed_by} {verdict.how}")
        return verdict

    with ThreadPoolExecutor(len(checkouts)) as pool:
        try:
            return list(pool.map(one, mutants))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for checkout in checkouts:
                checkout.stop()
            raise


# -- the command ------------------------------------------------------------------------------------------------------


def report(verdicts: Sequence[Verdict], judged: Sequence[tuple[Mutant, str]]) -> str:
    lines = [f"{'package':<12}{'tried':>8}{'tests':>8}{'worlds':>8}{'none':>8}{'noticed':>10}"]
    packages = list(dict.fromkeys(verdict.mutant.package for verdict in verdicts))
    for package in [*packages, "all"]:
        noticed = [v.noticed_by for v in verdicts if package in (v.mutant.package, "all")]
        counts = [noticed.count(name) for name in ("tests", "worlds", "none")]
        share = f"{100 * (1 - counts[-1] / max(len(noticed), 1)):.0f} %"
        lines.append(f"{package:<12}{len(noticed):>8}" + "".join(f"{count:>8}" for count in counts) + f"{share:>10}")
    lines += ["", f"{len(judged)} more were drawn and are judged to be equivalent or to cost speed only."]
    for verdict in verdicts:
        if verdict.noticed_by == "none":
            mutant = verdict.mutant
            lines += ["", f"{mutant.place}: not noticed ({mutant.mutation.kind})"]
            lines += [f"- {mutant.before}", f"+ {mutant.after}"]
    return "\n".join(lines)


def details(verdicts: Sequence[Verdict], judged: Sequence[tuple[Mutant, str]]) -> str:
    """What was noticed, and by what: to see whether that is believable."""
    noticed = [(v.mutant, f"{v.noticed_by}: {v.how}") for v in verdicts if v.noticed_by != "none"]
    parts = (f"{mutant.place}: {what}\n- {mutant.before}\n+ {mutant.after}" for mutant, what in [*noticed, *judged])
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            verdicts, judged = _run(options, Path(folder))
    except CannotTellError as error:
        _say(f"mutants: {error}")
        return 2
    print(report(verdicts, judged))
    if options.out is not None:
        options.out.write_text(f"{report(verdicts, judged)}\n\n{details(verdicts, judged)}\n")
    return 0


def _run(options: argparse.Namespace, folder: Path) -> tuple[list[Verdict], list[tuple[Mutant, str]]]:
    archive = subprocess.run(["git", "-C", ROOT, "archive", options.commit], capture_output=True, check=False)
    if archive.returncode:
        raise CannotTellError(f"needs a checkout with git: {archive.stderr.decode().strip()}")
    checkouts = [Checkout(folder / str(number), archive.stdout) for number in range(options.jobs)]
    drawn = draw(checkouts[0].source, options.packages, options.count, options.seed)
    reasons: Mapping[_Key, str] = read_judged(JUDGED.read_text())
    judged = [(mutant, reasons[mutant.key]) for mutant in drawn if mutant.key in reasons]
    mutants = [mutant for mutant in drawn if mutant.key not in reasons]
    _say(f"{len(mutants)} mutants of {options.commit}, seed {options.seed}; first everything without any")
    trial = Trial(checkouts[0], options.packages, options.worlds)
    return try_all(mutants, trial, checkouts), judged


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dualpath.testing.mutants", description=__doc__)
    parser.add_argument("--count", type=_positive, default=20, help="how many, of all packages together (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="draws them (default 0)")
    parser.add_argument("--packages", type=_packages, default=tuple(TESTS), help=f"default {','.join(TESTS)}")
    parser.add_argument("--worlds", type=_positive, default=40, help="seeds of dualpath.testing.explore (default 40)")
    parser.add_argument("--jobs", type=_positive, default=1, help="copies to work in (default 1)")
    parser.add_argument("--commit", default="HEAD", help="what to change (default HEAD)")
    parser.add_argument("--out", type=Path, help="a file for the report, and what noticed each of the others")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number from 1, not {text!r}")
    return int(text)


def _packages(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in TESTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(TESTS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
