"""Runs `first-llama` as a user would, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def first_llama(
    *args: object, stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line with one thread; without `stdin`, standard input is empty."""
    if args and args[0] == "run":
        args = ("run", "--threads", 1, *args[1:])
    return subprocess.run(
        [sys.executable, "-m", "first_llama", *map(str, args)],
        input=stdin or "",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """Return the one JSON document on stdout of a command that succeeded."""
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def assert_one_line_error(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """Check exit code, and that the error is one line that holds the parts."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for part in parts:
        assert part in lines[0]
