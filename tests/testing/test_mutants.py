"""Single changes to a source: which there are, that they are what they say, and who is said to have noticed them."""

from __future__ import annotations

import ast
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dualpath.testing import checkout, mutants
from dualpath.testing.checkout import Checkout
from dualpath.testing.mutants import CannotTellError, Trial, Verdict, draw, read_judged, report, try_all
from dualpath.testing.mutations import mutations

PACKAGE = Path(mutants.__file__).parents[1]


def after(source: str) -> set[str]:
    return {mutation.apply(source) for mutation in mutations(source)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", {"a >= b", "a <= b"}),
        ("a is not b", {"a is b"}),
        ("a not in (b)", {"a in (b)"}),
        ("0 < a == b", {"1 < a == b", "0 >= a == b", "0 <= a == b", "0 < a != b"}),
        ("a and (b or c)", {"a or (b or c)", "a and (b and c)"}),
        ("a and b and c", {"a or b or c"}),
        ("a + b", {"a - b"}),
        ("'a' + b", set()),
        ("a * 9", set()),
        ("not a", {"a"}),
        ("f(a=True, strict=True)", {"f(a=False, strict=True)", "pass"}),
        ("a += 1", {"pass", "a -= 1", "a += 2"}),
        ("a = b", set()),
        ("a.b = c", {"pass"}),
        ("raise a", {"pass"}),
        ("assert a < b", set()),
        ("f'{a < b}'", set()),
        ("_log.info(a < b)", set()),
        ("if a < b:\n    _log.info(c)", set()),
        ("if a:\n    f()", {"if False:\n    f()", "if not (a):\n    f()", "if a:\n    pass"}),
        ("b if a or é else c", {"b if a and é else c", "b if not (a or é) else c"}),
        ("[a for a in b if c]", {"[a for a in b if not (c)]"}),
        ("@f(1)\nclass A(B, c=True):\n    d: e[1] = 2", {"@f(1)\nclass A(B, c=True):\n    d: e[1] = 3"}),
        ("def __init__(s):\n    s.a = b", set()),
        ("def f(s):\n    'what it does'\n    s.a = b", {"def f(s):\n    'what it does'\n    pass"}),
    ],
)
def test_what_a_source_is_changed_to(source: str, expected: set[str]) -> None:
    assert after(source) == expected


def test_every_change_of_the_data_path_is_another_program() -> None:
    drawn = draw(PACKAGE, list(checkout.TESTS), 200, 0)
    assert [m.key for m in drawn] == [m.key for m in draw(PACKAGE, list(checkout.TESTS), 200, 0)]
    assert {m.package for m in drawn} == set(checkout.TESTS)
    for mutant in drawn:
        text = (PACKAGE / mutant.path).read_text()
        assert ast.dump(ast.parse(mutant.mutation.apply(text))) != ast.dump(ast.parse(text)), mutant
        assert mutant.before != mutant.after
        assert mutant.before in " ".join(text.split())


def test_lines_of_a_change_stand_alone_and_on_one_line() -> None:
    source = "x = 1\nif (a\n        and b):  # why\n    f()\n"
    (mutation,) = (m for m in mutations(source) if m.kind == "and turned")
    assert mutation.diff(source) == ("if (a and b): # why", "if (a or b): # why")


SOURCE = """
def sign(a):
    if a < 0:
        return -1
    return 9 if a > 0 else 0


def other(a):
    return a and 9
"""
TEST = """
import pathlib
from dualpath.small import part


def test_signs():
    assert (part.sign(-1), part.sign(0)) == (-1, 0)
"""
WORLD = """
from types import SimpleNamespace
from dualpath.small import part


def explore(seeds):
    return SimpleNamespace(found=[] if part.other(3) == 9 else [1])
"""
FLAKY = """

def test_flaky():
    here = pathlib.Path("seen")
    if not here.exists():
        here.touch()
        raise AssertionError
"""
WRONG = """

def test_wrong():
    raise AssertionError
"""
FILES = {
    "src/dualpath/__init__.py": "",
    "src/dualpath/small/__init__.py": "",
    "src/dualpath/small/part.py": SOURCE,
    "src/dualpath/testing/__init__.py": "",
    "src/dualpath/testing/explore.py": WORLD,
    "tests/small/test_part.py": TEST,
}
PART = "small/part.py"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Checkout]:
    """A package with two functions: a test looks at a part of one, a world at the other."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, text in FILES.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    monkeypatch.setitem(checkout.TESTS, "small", ("tests/small",))
    copy = Checkout(tmp_path / "copy", data.getvalue())
    yield copy
    assert (copy.source / PART).read_text() == SOURCE


def test_tests_notice_worlds_notice_and_nothing_notices(small: Checkout) -> None:
    noticed_by = {
        "if a >= 0:": "tests",
        "return 9 if a >= 0 else 0": "tests",
        "return 9 if a > 1 else 0": "none",  # who would try a 1
        "return a or 9": "worlds",
    }
    chosen = [mutant for mutant in draw(small.source, ["small"], 100, 0) if mutant.after in noticed_by]
    assert len(chosen) == 4
    verdicts = try_all(chosen, Trial(small, ["small"], 3), [small])
    assert {v.mutant.after: v.noticed_by for v in verdicts} == noticed_by
    assert {v.how for v in verdicts} == {"tests/small/test_part.py::test_signs", "a world: exit status 1", ""}
    lines = report(verdicts, [(chosen[0], "speed")]).splitlines()
    assert lines[1].split() == ["small", "4", "2", "1", "1", "75", "%"]
    assert lines[4].startswith("1 more")
    changes = ["- return 9 if a > 0 else 0", "+ return 9 if a > 1 else 0"]
    assert lines[-3:] == [f"{PART}:5: not noticed (constant)", *changes]


def test_what_hangs_is_noticed(small: Checkout) -> None:
    with small.changed(PART, SOURCE.replace("return -1", "while True: pass")):
        assert small.run_tests("small", 20.0) == "it hangs"


def test_worlds_tell_what_they_have_loaded(small: Checkout) -> None:
    assert small.run_worlds(3, 60.0) == (None, {PART, "small/__init__.py", "testing/__init__.py", "testing/explore.py"})


def test_a_test_that_fails_once_is_not_believed(small: Checkout) -> None:
    test = small.source.parents[1] / "tests" / "small" / "test_part.py"
    test.write_text(TEST + FLAKY)
    assert small.run_tests("small", 60.0) is None
    test.write_text(TEST + WRONG)
    assert small.run_tests("small", 60.0) == "tests/small/test_part.py::test_wrong"
    with pytest.raises(CannotTellError, match="tests of small fail without any change"):
        Trial(small, ["small"], 3)


def test_judged_mutants_are_read_with_their_reasons() -> None:
    text = "# why they count for nothing\n\na/b.py: speed\n- if x:\n+ if False:\n"
    assert read_judged(text) == {("a/b.py", "if x:", "if False:"): "speed"}
    for wrong in ("a/b.py\n- x\n+ y\n", "a/b.py: speed\n- x\n", "a/b.py: speed\n+ y\n- x\n"):
        with pytest.raises(CannotTellError, match=mutants.JUDGED.name):
            read_judged(wrong)


def test_each_judged_mutant_is_still_one() -> None:
    """Where the code has changed, it must be judged again."""
    known: dict[str, set[tuple[str, str]]] = {}
    for path, before, after_it in read_judged(mutants.JUDGED.read_text()):
        if path not in known:
            source = (PACKAGE / path).read_text()
            known[path] = {mutation.diff(source) for mutation in mutations(source)}
        assert (before, after_it) in known[path], f"{path}: nothing is changed like this: {before}"


@pytest.mark.parametrize("arguments", [["--count", "0"], ["--packages", "nowhere"], ["--jobs", "x"]])
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        mutants.main(arguments)
    assert stop.value.code == 2


def test_without_a_commit_nothing_can_be_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert mutants.main(["--commit", "no-such-commit"]) == 2
    assert "needs a checkout with git" in capsys.readouterr().err


def test_nothing_tried_is_nothing_missed() -> None:
    assert "100 %" in report(list[Verdict](), [])
