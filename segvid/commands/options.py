"""What the commands have in common: a parser whose errors are sentences, and how far a long work is."""

import argparse
import time
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from segvid.errors import UserError
from segvid.text import plain

if TYPE_CHECKING:
    from rich.console import Console

INTERVAL = 60.0  # seconds between two lines in a log


class Parser(argparse.ArgumentParser):
    """argparse, with errors as `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print."""
        raise UserError(f"{message}. See {self.prog} --help.")


class Progress:
    """How far a work is: on a terminal a bar with the remaining time, elsewhere a line a minute.

    Args:
        console: where it is shown.
        what: is done, for example "predict".
        total: number of items; None where it is not known.
        unit: of the items.
    """

    def __init__(self, console: "Console", what: str, total: int | None, unit: str = "files") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit, markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.console = console
        self.what = plain(what)
        self.total = total
        self.unit = unit
        self.done = 0
        self.bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task(self.what, total=total)
        self.started = self.said = time.monotonic()

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def advance(self, steps: int = 1, what: str | None = None) -> None:
        """Counts items that are done; `what` is shown as what is done now."""
        self.done += steps
        if what is not None:
            self.what = plain(what)
        self.bar.update(self.task, advance=steps, description=self.what)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.said >= INTERVAL:
            self.said = now
            self.console.print(f"{self.what}: {self.state(now - self.started)}", soft_wrap=True)

    def expect(self, total: int) -> None:
        """Another number of items, known better now."""
        self.total = total
        self.bar.update(self.task, total=total)

    def state(self, seconds: float) -> str:
        """What is done after so many seconds, and how long the rest will take."""
        if self.total is None:
            return f"{self.done} {self.unit}"
        left = seconds / max(self.done, 1) * (self.total - self.done)
        return f"{self.done} of {self.total} {self.unit}, {duration(left)} left"


def duration(seconds: float) -> str:
    """Seconds as "50 s", "3 min" or "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
