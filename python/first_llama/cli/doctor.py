"""`first-llama doctor`: what is installed, what it runs on, and what to put in a bug report."""

from __future__ import annotations

from typing import Annotated

import typer

from first_llama.cli._console import print_json


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show library, devices, CPU features, default model and versions, and name what is wrong.

    Put its output into a bug report. The exit code is 1 when something is wrong.

    Example: first-llama doctor
    """
    from first_llama.doctor import examine

    found = examine()
    if json:
        print_json(found.document())
    else:
        print("\n".join(found.page()))
    if found.problems:
        raise typer.Exit(1)
