"""`first-llama doctor`: what is installed, what it runs on, and what to put in a bug report."""

from __future__ import annotations

from typing import Annotated

import typer

from first_llama.cli._console import print_json


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    cflags: Annotated[
        bool, typer.Option("--cflags", help="Print only what compiles a C program with first.h and llama.h.")
    ] = False,
    libs: Annotated[
        bool, typer.Option("--libs", help="Print only what links a C program with libllama.")
    ] = False,
) -> None:
    """Show library, devices, CPU features, default model and versions, and name what is wrong.

    Put its output into a bug report. The exit code is 1 when something is wrong. With --cflags or --libs it
    does what pkg-config does: cc program.c $(first-llama doctor --cflags --libs)

    Example: first-llama doctor
    """
    if cflags or libs:
        from first_llama import c_flags

        print(*([c_flags.cflags()] if cflags else []), *([c_flags.libs()] if libs else []))
        return
    from first_llama.doctor import examine

    found = examine()
    if json:
        print_json(found.document())
    else:
        print("\n".join(found.page()))
    if found.problems:
        raise typer.Exit(1)
