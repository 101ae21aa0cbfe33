"""The command line `first-llama`: one module a verb, imported when the verb is used."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from first_llama import __version__
from first_llama.cli._signals import Stopped, signals_stop
from first_llama.cli._template import template_problem
from first_llama.errors import FirstError

#: Each verb is a function of its name in a module of its name. `run` must not pay for what `train` imports.
VERBS = (
    *("run", "chat", "serve", "bench", "eval", "train"),
    *("convert", "embed", "strip", "inspect", "verify", "diff"),
    "doctor",
)

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class _Verbs(TyperGroup):
    """A group that imports a verb's module when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the verbs in the order of VERBS."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the verb's command; None if there is no such verb."""
        if cmd_name not in VERBS:
            return None
        if cmd_name not in self.commands:
            module = importlib.import_module(f"first_llama.cli.{cmd_name}")
            single = typer.Typer(add_completion=False, rich_markup_mode=None)
            single.command(cmd_name)(getattr(module, cmd_name))
            self.commands[cmd_name] = typer.main.get_command(single)
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the verb; typer suggests among the commands it knows, so import all for a wrong name."""
        if args and args[0] not in VERBS:
            for verb in VERBS:
                self.get_command(ctx, verb)
        return super().resolve_command(ctx, args)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"first-llama {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Verbs,
    rich_markup_mode=None,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _first_llama(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run llama.cpp models that skip the layers a prompt does not need.

    Example: first-llama run "Why is the sky blue?"
    """


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    It is 0, 1 (failed), 2 (bad usage), 130 (Ctrl-C), 143 (SIGTERM) or 129 (SIGHUP).
    """
    command = typer.main.get_command(app)
    try:
        with signals_stop():
            result = command.main(args, prog_name="first-llama", standalone_mode=False)
            sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except Stopped as e:
        return e.exit_code
    except typer.TyperException as e:
        context = getattr(e, "ctx", None)  # of bad usage: the verb
        hint = f" (see `{context.command_path if context else 'first-llama'} --help`)"
        return _fail(e.format_message() + (hint if e.exit_code == EXIT_USAGE else ""), e.exit_code)
    except FirstError as e:
        return _fail(str(e))
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away; give the interpreter nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as e:
        problem = template_problem(e) or _system_problem(e)
        if problem is None:
            raise
        return _fail(problem)


def _system_problem(error: Exception) -> str | None:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return str(error) if isinstance(error, ImportError) else None


def _fail(message: str, code: int = EXIT_FAILED) -> int:
    # A message may quote a file: nothing in it may steer a terminal.
    line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
    print(f"error: {line}", file=sys.stderr)
    return code
