"""Long work in a process of its own: its lines can be followed, and Ctrl-C or a crash in C ends only it."""

from __future__ import annotations

import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

#: Lines of standard error that are kept to explain a failure.
_TAIL = 200


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (negative: the signal that killed it) and its last lines."""

    code: int
    lines: list[str]


def run(
    args: Sequence[str], *, env: Mapping[str, str], stdin: str = "", on_line: Callable[[str], None]
) -> Ended:
    """Run a program to its end; its standard output is dropped.

    Args:
        args: program and arguments.
        env: its whole environment.
        stdin: what it finds on standard input; short.
        on_line: called with each line of its standard error.

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
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(stdin)
            process.stdin.close()
        for line in process.stderr:
            tail.append(line.rstrip())
            on_line(line.rstrip())
        return Ended(process.wait(), list(tail))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()
