"""Long work in a process of its own: its lines can be followed, and Ctrl-C or a crash in C ends only it."""

from __future__ import annotations

import os
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

#: Lines of standard error that are kept to explain a failure.
_TAIL = 200
#: On Windows, crashes have larger codes, and abort() gives its own.
_MAX_EXIT_CODE, _ABORT = 255, 3


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: its exit code; negative: the signal that killed it.
        lines: its last lines of standard error.
        timed_out: whether it was killed because it took too long.
    """

    code: int
    lines: list[str]
    timed_out: bool = False

    @property
    def crashed(self) -> bool:
        """Whether a signal ended it, or on Windows an exception that nothing caught."""
        windows = os.name == "nt" and (self.code == _ABORT or self.code > _MAX_EXIT_CODE)
        return self.code < 0 or windows

    @property
    def how(self) -> str:
        """How a crashed child ended, in a word or two."""
        return f"signal {-self.code}" if self.code < 0 else f"code {self.code:#x}"

    @property
    def last(self) -> str:
        """The last line that says something, without "error: "."""
        line = next((line for line in reversed(self.lines) if line.strip()), "no reason given")
        return line.removeprefix("error: ").strip()


def run(
    args: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: str = "",
    on_line: Callable[[str], None],
    seconds: float | None = None,
) -> Ended:
    """Run a program to its end; its standard output is dropped.

    Args:
        args: program and arguments.
        env: its whole environment.
        stdin: what it finds on standard input; short.
        on_line: called with each line of its standard error.
        seconds: after so many it is killed; None waits for ever.

    Raises:
        OSError: if the program cannot be started. Whatever ends this function early kills the child.
    """
    process = subprocess.Popen(
        args,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=dict(env),
    )
    assert process.stdin is not None and process.stderr is not None
    tail: deque[str] = deque(maxlen=_TAIL)
    late = threading.Event()

    def kill() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds or 0.0, kill)
    timer.daemon = True
    if seconds is not None:
        timer.start()
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(stdin)
            process.stdin.close()
        for line in process.stderr:
            tail.append(line.rstrip())
            on_line(line.rstrip())
        return Ended(process.wait(), list(tail), late.is_set())
    finally:
        timer.cancel()
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()
