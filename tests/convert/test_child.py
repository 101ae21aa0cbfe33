"""Children: their lines arrive, their end is told, and none outlives the call."""

from __future__ import annotations

import os
import sys

import pytest

from first_llama.convert.child import run


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_lines_and_exit_code() -> None:
    seen: list[str] = []
    code = "import sys; print('lost'); sys.stderr.write('a\\rb\\n' + sys.stdin.read()); sys.exit(3)"
    ended = run(_python(code), env=os.environ, stdin="typed", on_line=seen.append)
    assert (ended.code, ended.lines) == (3, ["a", "b", "typed"])
    assert seen == ended.lines


def test_a_crash_is_a_negative_code() -> None:
    ended = run(_python("import os; os.abort()"), env=os.environ, on_line=lambda _: None)
    assert ended.code == -6


def test_an_interrupt_kills_the_child() -> None:
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    code = "import os, sys, time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        run(_python(code), env=os.environ, on_line=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_a_child_that_reads_nothing() -> None:
    assert run(_python("pass"), env=os.environ, stdin="x" * 1_000_000, on_line=lambda _: None).code == 0
