"""`first-llama chat`: a conversation in the terminal."""

from __future__ import annotations

import io
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from first_llama.cli import _options
from first_llama.cli._console import Logs, n_cpus
from first_llama.cli._model import model_file, open_model, skip_option
from first_llama.default_model import SYSTEM_PROMPT, cache_folder
from first_llama.errors import FirstError

if TYPE_CHECKING:
    from first_llama.chat.model import ChatModel
    from first_llama.chat.session import Session
    from first_llama.chat.terminal import Reader

_HISTORY = "chat-history.jsonl"
_CTX_STEP = 256


def chat(
    model: _options.Model = None,
    skip: _options.SkipText = "auto",
    n: Annotated[int, typer.Option("-n", min=1, help="Tokens of an answer at most.")] = 512,
    temp: _options.Temp = 0.2,
    repeat_penalty: _options.RepeatPenalty = 1.1,
    system: _options.System = None,
    threads: _options.Threads = None,
    ctx: Annotated[
        int, typer.Option(min=16, help="Context in tokens; when it is full, the oldest turns are left out.")
    ] = 4096,
    no_repack: _options.NoRepack = False,
    refill: _options.Refill = False,
    seed: _options.Seed = None,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Neither read nor write the file of what was typed.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's log.")] = False,
) -> None:
    """Talk with a model; each answer leaves out the layers that its prompt does not need.

    Ctrl-C stops an answer; at an empty prompt it leaves. /help lists the commands. From a pipe, each line is
    a question (or a command), and only answers are on standard output.

    Example: first-llama chat --skip auto --system "Answer in one sentence."
    """
    wanted = skip_option(skip)
    path = model_file(model)
    if system is None and model is None:
        system = SYSTEM_PROMPT

    from first_llama import _library

    _library.first()
    from first_llama.chat.commands import COMMANDS
    from first_llama.chat.conversation import Conversation
    from first_llama.chat.session import Session
    from first_llama.chat.terminal import PipedReader, StandardScreen, TypedReader

    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    stdin = sys.stdin or io.StringIO()  # None if it was closed before the start
    typed = stdin.isatty()
    screen = StandardScreen(typed)
    logs = Logs(verbose)
    try:
        options = {"threads": threads or max(1, n_cpus() // 2), "repack": not no_repack, "refill": refill}
        with closing(_open(path, wanted, ctx, verbose, options)) as llm:
            logs.flush()
            if not llm.has_template and llm.chat_handler is None:
                llm.chat_format = "chatml"
                screen.note("the file has no chat template; ChatML is used")
            settings = {"temperature": temp, "repeat_penalty": repeat_penalty, "seed": seed}
            session = Session(llm, screen, Conversation(system or None), n, settings)
            reader: Reader
            if typed:
                with_files = [name for name, command in COMMANDS.items() if command.argument == "FILE"]
                history = None if no_history else cache_folder() / _HISTORY
                reader = TypedReader(history, COMMANDS, with_files)
                screen.note(f"{path.name}, {llm.route.n_layer} layers, skip {skip}; /help lists the commands")
            else:
                reader = PipedReader(stdin)
            failed = _converse(session, reader, logs)
    finally:
        logs.flush()
    if failed and not typed:
        raise typer.Exit(1)


def _converse(session: Session, reader: Reader, logs: Logs) -> bool:
    """Read and answer until the user leaves; return whether anything went wrong."""
    from first_llama.chat.commands import Leave, run_command

    failed = False
    while True:
        try:
            text, is_command = reader.read()
            if is_command:
                run_command(session, text)
            elif text.strip():
                session.ask(text)
        except (EOFError, Leave):
            return failed
        except FirstError as e:
            failed = True
            session.screen.error(str(e))
        except KeyboardInterrupt:
            # Between an answer and the next prompt; a script is to end.
            if not session.screen.interactive:
                raise
        logs.flush()


def _open(path: Path, skip: Any, n_ctx: int, verbose: bool, options: dict[str, Any]) -> ChatModel:
    from first_llama.chat.model import ChatModel

    # llama.cpp rounds a context up; llama_cpp's own arrays must be as long.
    n_ctx = -(-n_ctx // _CTX_STEP) * _CTX_STEP
    return open_model(ChatModel, path, skip=skip, n_ctx=n_ctx, verbose=verbose, **options)
