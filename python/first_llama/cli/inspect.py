"""`first-llama inspect`: show and check the routers of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from first_llama.cli._console import print_json


def inspect(
    file: Annotated[Path, typer.Argument(help="GGUF file.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show the routers of a GGUF file and check them against every rule of the format.

    The exit code is 1 when the file has routers that are not valid, or is not a GGUF file; a file
    without routers is no error.

    Example: first-llama inspect model-first.gguf
    """
    from first_llama.convert.inspect import inspect as read

    found = read(file)
    if json:
        print_json(found.document())
    else:
        print("\n".join(found.page()))
    if not found.ok:
        raise typer.Exit(1)
