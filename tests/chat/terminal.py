"""`first-llama chat` in a real pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType

#: What a terminal sends when keys are pressed.
CTRL_C, CTRL_D, UP, TAB = "\x03", "\x04", "\x1b[A", "\t"

#: Seconds after which a chat that shows nothing has failed; a busy machine may be slow.
PATIENCE = 600.0

#: Seconds before Ctrl-C, and until it is pressed again. Python's readline sleeps on to the next key when the
#: signal comes after it has looked for one and before it waits for a key, which a person cannot do.
PAUSE, UNHEARD = 0.5, 60.0

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """A chat whose standard input, output and error are a terminal.

    Args:
        cache: folder for the history of what was typed.
        args: arguments of `first-llama chat`.
    """

    def __init__(self, cache: Path, *args: object) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "first_llama", "chat", "--threads", "1", *map(str, args)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={
                **os.environ,
                "FIRST_LLAMA_CACHE": str(cache),
                "TERM": "xterm",
                "COLUMNS": "200",
                "INPUTRC": os.devnull,
            },
            preexec_fn=_own_terminal,
        )
        os.close(slave)
        self.seen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._master, text.encode())

    def wait_for(self, text: str, seconds: float = PATIENCE) -> str:
        """Return what was shown up to and with the text, and forget it; fail if it does not come."""
        end = time.monotonic() + seconds
        while text not in (shown := _ESCAPES.sub("", self.seen)):
            assert time.monotonic() < end, f"{text!r} is not in {shown!r}"
            assert self._read(end - time.monotonic()), f"the chat ended: {text!r} is not in {shown!r}"
        before, _, after = shown.partition(text)
        self.seen = after
        return before + text

    def prompt(self) -> str:
        """Return what was shown up to the next prompt."""
        return self.wait_for("\n> ") if not self.seen.startswith("> ") else self.wait_for("> ")

    def ask(self, text: str) -> str:
        """Type a line, and return what is shown for it up to the next prompt."""
        self.type(text + "\n")
        return self.prompt()

    def interrupt(self) -> str:
        """Press Ctrl-C at a prompt, and return what is shown up to the next one."""
        self._press(CTRL_C)
        return self.prompt()

    def leave(self, key: str = CTRL_D, seconds: float = PATIENCE) -> int:
        """Press a key, and return the exit code."""
        self._press(key)
        end = time.monotonic() + seconds
        while self._read(max(0, end - time.monotonic())):
            pass
        return self.process.wait(timeout=seconds)

    def _press(self, key: str) -> None:
        if key == CTRL_C:
            time.sleep(PAUSE)
        self.type(key)
        if key == CTRL_C and not select.select([self._master], [], [], UNHEARD)[0]:
            self.type(key)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], max(0, seconds))[0]:
            return False
        try:
            data = os.read(self._master, 4096)
        except OSError:  # Linux: the other side is closed
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)


def _own_terminal() -> None:
    # What a shell does for the job in the foreground: Ctrl-C reaches it as a signal.
    os.setsid()
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
