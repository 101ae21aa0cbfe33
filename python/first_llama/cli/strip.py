"""`first-llama strip`: routers out of a GGUF file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from first_llama.cli._console import print_json


def strip(
    file: Annotated[Path, typer.Argument(help="GGUF file with routers, or the first of its parts.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="GGUF file to write; for a split model, see below.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write a copy of a GGUF file without its routers: the file as it was before `embed`, bit for bit.

    Of a split model give the first part. -o names the first part to write, OUT-00001-of-00003.gguf for a
    model of three, or is OUT.gguf, which gives the same names.

    Example: first-llama strip model-first.gguf -o model.gguf
    """
    from first_llama.convert.embed import strip as write

    written = write(file, output, force=force)
    if json:
        document = {"output": str(written.path), "bytes": written.n_bytes, "removed": written.keys}
        print_json(document | {"n_parts": written.n_parts})
    else:
        what = (
            f"{len(written.keys)} keys removed"
            if written.keys
            else "it had no routers, so it is a plain copy"
        )
        print(f"wrote {written}: {what}", file=sys.stderr)
