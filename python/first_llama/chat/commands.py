"""What a line that begins with a slash does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from first_llama.chat.conversation import load
from first_llama.chat.pictures import route_lines, stats_lines
from first_llama.chat.session import Session
from first_llama.errors import FirstError
from first_llama.route import parse_skip


class Leave(Exception):
    """The user wants to go."""


@dataclass(frozen=True)
class Command:
    """A command: what it is called with, one line of help, and what it does with its argument."""

    argument: str
    help: str
    run: Callable[[Session, str], None]


def run_command(session: Session, line: str) -> None:
    """Do what a line says.

    Args:
        session: what the command acts on.
        line: "/name", or "/name argument".

    Raises:
        Leave: if the user wants to go.
        FirstError: if there is no such command, or it cannot do what it is asked to.
    """
    words = line.removeprefix("/").split(maxsplit=1)
    name, argument = words[0] if words else "", words[1].strip() if len(words) > 1 else ""
    command = COMMANDS.get(name)
    if command is None:
        raise FirstError(f"/{name} is no command; /help lists them, and // begins a text with a slash")
    if argument and not command.argument:
        raise FirstError(f"/{name} takes nothing after it")
    if not argument and command.argument and not command.argument.startswith("["):
        raise FirstError(f"/{name} needs something after it: /{name} {command.argument}")
    command.run(session, argument)


def _skip(session: Session, text: str) -> None:
    if text:
        try:
            session.llm.skip = parse_skip(text)
        except FirstError as e:
            raise FirstError(str(e).removeprefix("--skip ")) from e
    skip = session.llm.skip
    shown = ",".join(map(str, skip)) if isinstance(skip, list) else str(skip)
    without = " (every layer runs: the file has no routers)" if _is_idle(session) else ""
    session.screen.line(f"skip {shown}{without}")


def _is_idle(session: Session) -> bool:
    return session.llm.skip == "auto" and not session.llm.has_routers


def _route(session: Session, _: str) -> None:
    if session.route is None:
        raise FirstError("nothing has been answered yet; ask something first")
    for line in route_lines(session.route, session.threshold, session.screen.unicode):
        session.screen.line(line)


def _stats(session: Session, _: str) -> None:
    for line in stats_lines(session.numbers):
        session.screen.line(line)


def _clear(session: Session, _: str) -> None:
    session.conversation.clear()
    session.begin(session.conversation)
    session.screen.line("a new conversation begins")


def _undo(session: Session, _: str) -> None:
    turn = session.conversation.undo()
    if turn is None:
        raise FirstError("there is no turn to take back")
    left = len(session.conversation.turns)
    session.screen.line(f"taken back: {_short(turn.question)} ({_turns(left)} left)")


def _system(session: Session, text: str) -> None:
    conversation = session.conversation
    if text:
        conversation.system = None if text in ('""', "''") else text
    session.screen.line(
        f"system prompt: {conversation.system}" if conversation.system else "no system prompt"
    )


def _save(session: Session, name: str) -> None:
    path = Path(name).expanduser()
    session.conversation.save(path)
    session.screen.line(f"{_turns(len(session.conversation.turns))} saved in {path}")


def _load(session: Session, name: str) -> None:
    path = Path(name).expanduser()
    session.begin(load(path))
    session.screen.line(f"{_turns(len(session.conversation.turns))} loaded from {path}")


def _help(session: Session, _: str) -> None:
    uses = {f"/{name} {command.argument}".rstrip(): command.help for name, command in COMMANDS.items()}
    width = max(map(len, uses))
    for use, text in uses.items():
        session.screen.line(f"{use.ljust(width)}  {text}")
    session.screen.line(
        'Alt-Enter, or a \\ at the end, continues a line; """ begins and ends a text of several lines.'
    )
    session.screen.line("Ctrl-C stops an answer; at an empty prompt it leaves, as Ctrl-D does.")


def _exit(session: Session, _: str) -> None:
    raise Leave


def _turns(n: int) -> str:
    return "1 turn" if n == 1 else f"{n} turns"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 50 else line[:49] + "…"


COMMANDS = {
    "skip": Command(
        "[0.2|auto|off|3,4,5]", "show what is left out, or change it from the next answer on", _skip
    ),
    "route": Command("", "the layers that the last answer left out, and the scores", _route),
    "stats": Command("", "tokens, speeds and skip fraction of each turn and of all", _stats),
    "clear": Command("", "begin a new conversation; the system prompt stays", _clear),
    "undo": Command("", "take back the last turn", _undo),
    "system": Command("[TEXT]", 'show the system prompt, or change it ("" removes it)', _system),
    "save": Command("FILE", "write the conversation as JSON", _save),
    "load": Command("FILE", "go on with a saved conversation", _load),
    "help": Command("", "this list", _help),
    "exit": Command("", "leave", _exit),
}
