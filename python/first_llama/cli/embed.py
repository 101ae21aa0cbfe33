"""`first-llama embed`: a run's routers, and its adapter, into a GGUF file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from first_llama.cli._console import print_json


def embed(
    base: Annotated[
        Path,
        typer.Argument(
            help="GGUF file of the model that the routers were trained on, or the first of its parts."
        ),
    ],
    run: Annotated[Path, typer.Argument(help="Folder that `first-llama train` wrote.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="GGUF file to write; for a split model, see below.")
    ],
    threshold: Annotated[
        float | None, typer.Option(help="Skip layers that score below this, in place of the run's own value.")
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter/--no-adapter", help="Merge the run's LoRA adapter, if it has one.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write a copy of a GGUF file with a run's routers in it, and its adapter merged into the weights.

    Stock llama.cpp still loads the copy and runs every layer. Routers that the file already has are
    replaced. A run with an adapter and without routers gives the merged model alone.

    Of a split model (BASE-00001-of-00003.gguf) give the first part. As many parts are written: -o
    OUT-00001-of-00003.gguf names the first of them, and -o OUT.gguf gives the same names.

    Example: first-llama embed model.gguf run/ -o model-first.gguf
    """
    from first_llama.convert.embed import embed as write
    from first_llama.convert.inspect import inspect

    written = write(
        base, run, output, threshold=threshold, force=force, adapter=adapter, progress=_show_progress
    )
    made = inspect(written.path).document()
    if json:
        names = ("n_layer", "layers", "threshold", "base", "has_routers", "valid", "errors")
        document = {"output": str(written.path), "bytes": written.n_bytes, "keys": written.keys}
        document |= {"n_merged": written.n_merged, "n_parts": written.n_parts}
        print_json(document | {name: made[name] for name in names})
    else:
        print(f"wrote {written}: {_summary(made, written.n_merged)}", file=sys.stderr)


def _summary(made: dict[str, Any], n_merged: int) -> str:
    parts = []
    if n_merged:
        parts.append(f"the adapter merged into {n_merged} tensors")
    if made["valid"]:
        parts.append(
            f"routers for {len(made['layers'])} of {made['n_layer']} layers, threshold {made['threshold']:g}"
        )
    else:
        parts.append("no routers, as the run has none")
    return ", ".join(parts)


def _show_progress(done: int, total: int) -> None:
    """Count merged tensors on one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\rmerging the adapter: {done}/{total}", end="\n" if done == total else "", file=sys.stderr)
