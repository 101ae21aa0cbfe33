"""`first-llama embed`: routers into a GGUF file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from first_llama.cli._console import print_json


def embed(
    base: Annotated[Path, typer.Argument(help="GGUF file of the model that the routers were trained on.")],
    run: Annotated[Path, typer.Argument(help="Folder that `first-llama train` wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="GGUF file to write.")],
    threshold: Annotated[
        float | None, typer.Option(help="Skip layers that score below this, in place of the run's own value.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write a copy of a GGUF file with a run's routers in it.

    Stock llama.cpp still loads the copy and runs every layer. Routers that the file already has are
    replaced.

    Example: first-llama embed model.gguf run/ -o model-first.gguf
    """
    from first_llama.convert.embed import embed as write
    from first_llama.convert.inspect import inspect

    written = write(base, run, output, threshold=threshold, force=force)
    made = inspect(output).document()
    if json:
        names = ("n_layer", "layers", "threshold", "base", "valid", "errors")
        document = {"output": str(output), "bytes": written.n_bytes, "keys": written.keys}
        print_json(document | {name: made[name] for name in names})
    else:
        print(
            f"wrote {output}: routers for {len(made['layers'])} of {made['n_layer']} layers, "
            f"threshold {made['threshold']:g}",
            file=sys.stderr,
        )
