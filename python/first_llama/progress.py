"""Progress of long work on stderr: a bar with rate and time left on a terminal, plain lines when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_SECONDS = 15.0


def say(line: str) -> None:
    """Print one line about the run on stderr."""
    print(line, file=sys.stderr, flush=True)


class Meter:
    """Counts finished items of one stage."""

    def __init__(self, label: str, total: int, done: int, bar: Progress | None) -> None:
        """Start a stage of ``total`` items, ``done`` of them done; no bar means plain lines."""
        self.label, self.total, self.done, self.bar = label, total, done, bar
        self.first, self.started, self.last = done, time.monotonic(), 0.0
        self.task = bar.add_task(label, total=total, completed=done, note="") if bar else None

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count items as done and show the state, at most every 15 seconds when piped."""
        self.done += count
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, advance=count, note=note)
            return
        now = time.monotonic()
        if now - self.last < PLAIN_SECONDS and self.done < self.total:
            return
        self.last = now
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        left = (self.total - self.done) / rate if rate > 0 else 0.0
        say(f"{self.label}: {self.done}/{self.total}, {rate:.2f}/s, {left:.0f} s left {note}".rstrip())


@contextmanager
def meter(label: str, total: int, done: int = 0) -> Iterator[Meter]:
    """Show the progress of one stage of ``total`` items, of which ``done`` were done in an earlier run."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Meter(label, total, done, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield Meter(label, total, done, bar)
