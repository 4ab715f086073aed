"""How far a run is: bars on a terminal, nothing at all where nobody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class RunProgress:
    """A bar for each run, one below the other."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def run(self, name: str, num_turns: int | None) -> Iterator[Callable[[], None]]:
        """Yields what is to be called once per finished turn. ``num_turns`` None: nobody knows how many."""
        columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, disable=not self._console.is_terminal) as progress:
            task = progress.add_task(name, total=num_turns)
            yield lambda: progress.advance(task)
