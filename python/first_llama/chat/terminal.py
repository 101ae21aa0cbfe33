"""Typing and showing: messages of one or several lines, line editing and history, plain pipes."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from glob import escape, glob
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

if TYPE_CHECKING:
    from first_llama.chat.session import Screen

PROMPT, CONTINUED = "> ", ". "
_BLOCK = '"""'
_N_HISTORY = 1000

#: A model's answer must not move the cursor or ring the bell.
_CONTROLS: dict[int, str] = {
    i: "\N{REPLACEMENT CHARACTER}" for i in [*range(32), 127, *range(128, 160)] if chr(i) not in "\n\t"
}
_CONTROLS[ord("\r")] = ""


def read_message(read_line: Callable[[str], str]) -> tuple[str, bool]:
    r"""Read one message.

    A backslash at the end of a line continues it; three double quotes begin and end a text of several lines.

    Args:
        read_line: shows a prompt and returns a line without its end; EOFError when there are no more.

    Returns:
        The message, and whether it is a command: it begins with one slash.

    Raises:
        EOFError: if there is no message. The end of the input ends a message that has begun.
    """
    first = read_line(PROMPT)
    if first.lstrip().startswith(_BLOCK):
        return _read_block(first.lstrip()[len(_BLOCK) :], read_line), False
    lines = [first]
    try:
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(read_line(CONTINUED))
    except EOFError:
        pass
    text = "\n".join(lines)
    if text.startswith("//"):
        return text[1:], False
    return text, text.startswith("/")


def _read_block(line: str, read_line: Callable[[str], str]) -> str:
    lines: list[str] = []
    try:
        while not line.rstrip().endswith(_BLOCK):
            lines.append(line)
            line = read_line(CONTINUED)
        lines.append(line.rstrip()[: -len(_BLOCK)])
    except EOFError:
        pass
    return "\n".join(lines).strip("\n")


class Reader(Protocol):
    """Where messages come from."""

    def read(self) -> tuple[str, bool]:
        """Return the next message, and whether it is a command; EOFError when there are no more."""


class PipedReader:
    """Reads messages from a file or a pipe; nothing is prompted."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Read from these lines."""
        self._lines = iter(lines)

    def read(self) -> tuple[str, bool]:
        """Return the next message."""
        return read_message(self._line)

    def _line(self, _: str) -> str:
        try:
            return next(self._lines).rstrip("\r\n")
        except StopIteration:
            raise EOFError from None


class TypedReader:
    """Reads what a person types, with the line editing, history and completion of readline if there is one.

    Ctrl-C drops what was typed, and leaves when nothing was.

    Args:
        history: file for what was typed, over sessions; None keeps it for this one.
        commands: what the Tab key completes after a slash.
        with_files: those of the commands after which it completes names of files.
    """

    def __init__(self, history: Path | None, commands: Iterable[str], with_files: Iterable[str]) -> None:
        """Set readline up."""
        self._history = history
        self._commands = [f"/{name}" for name in commands]
        self._with_files = tuple(f"/{name} " for name in with_files)
        self._readline: Any = None
        try:
            import readline
        except ImportError:
            return
        self._readline = readline
        readline.set_auto_history(False)
        readline.set_completer_delims(" ")
        readline.set_completer(self._complete)
        if "libedit" in (readline.__doc__ or ""):
            readline.parse_and_bind("bind ^I rl_complete")
        else:
            readline.parse_and_bind("tab: complete")
            readline.parse_and_bind('"\\e\\C-m": "\\C-v\\C-j"')  # Alt-Enter begins a new line
            if os.environ.get("TERM", "dumb") != "dumb":
                readline.parse_and_bind("set enable-bracketed-paste on")  # a pasted text is one message
        for entry in _read_history(history):
            readline.add_history(entry)

    def read(self) -> tuple[str, bool]:
        """Return the next message."""
        while True:
            self._begun, self._typed = False, ""
            try:
                text, is_command = read_message(self._line)
            except KeyboardInterrupt:
                print()
                if self._is_empty():
                    raise EOFError from None
                continue
            except EOFError:
                print()
                raise
            self._remember(text)
            return text, is_command

    def _line(self, prompt: str) -> str:
        if not sys.stdout.isatty():
            # Only answers belong into a file.
            print(prompt, end="", file=sys.stderr, flush=True)
            prompt = ""
        with self._noting_what_was_typed():
            line = input(prompt)
        self._begun = True
        return line

    @contextmanager
    def _noting_what_was_typed(self) -> Iterator[None]:
        """Note the line at Ctrl-C: some readlines (Debian 12's) drop it before KeyboardInterrupt arrives."""
        heard = signal.getsignal(signal.SIGINT)
        if self._readline is None or not callable(heard):
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._typed = self._readline.get_line_buffer()
            heard(number, frame)

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, heard)

    def _is_empty(self) -> bool:
        return not self._begun and not self._typed

    def _complete(self, text: str, state: int) -> str | None:
        line = self._readline.get_line_buffer()
        if " " not in line:
            found = [f"{name} " for name in self._commands if text and name.startswith(text)]
        elif line.startswith(self._with_files):
            found = _files(text)
        else:
            found = []
        return found[state] if state < len(found) else None

    def _remember(self, text: str) -> None:
        readline = self._readline
        if readline is None or not text.strip():
            return
        n = readline.get_current_history_length()
        if n and readline.get_history_item(n) == text:
            return
        readline.add_history(text)
        _append_history(self._history, text)


def _files(text: str) -> list[str]:
    """Return the names of files that begin with a text, folders with a slash at the end."""
    path = os.path.expanduser(text)
    names = sorted(glob(escape(path) + "*"))
    return [text + name[len(path) :] + ("/" if os.path.isdir(name) else "") for name in names]


def _read_history(path: Path | None) -> list[str]:
    """Return the last entries; the file is cut when it has grown to twice as many."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if len(lines) > 2 * _N_HISTORY:
            lines = lines[-_N_HISTORY:]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError:
        return []
    entries = []
    for line in lines[-_N_HISTORY:]:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # a torn line costs one entry
        if isinstance(entry, str):
            entries.append(entry)
    return entries


def _append_history(path: Path | None, text: str) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Private: people type what is nobody else's business.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w") as file:
            file.write(json.dumps(text) + "\n")
    except OSError:
        return  # a chat without a history file is still a chat


class StandardScreen:
    """Answers and what was asked for on standard output, the rest on standard error."""

    def __init__(self, interactive: bool) -> None:
        """Show things to a person, or to a pipe."""
        self.interactive = interactive
        self.unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
        self._tty = sys.stdout.isatty()
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def piece(self, text: str) -> None:
        """Show a piece of an answer."""
        print(text.translate(_CONTROLS) if self._tty else text, end="", flush=True)

    def line(self, text: str) -> None:
        """Show a line that was asked for."""
        self.piece(text + "\n")

    def note(self, text: str) -> None:
        """Show a line beside the answers, dim if that is possible."""
        self._console.print(text, style="dim", markup=False)

    def error(self, text: str) -> None:
        """Show what went wrong in one line."""
        self._console.print(f"error: {' '.join(text.split())}", style="red", markup=False)


if TYPE_CHECKING:
    _: type[Screen] = StandardScreen
