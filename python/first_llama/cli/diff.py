"""`first-llama diff`: how the routers of two files differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from first_llama.cli._console import print_json


def diff(
    a: Annotated[Path, typer.Argument(help="GGUF file (of a split one, the first part) or a run's folder.")],
    b: Annotated[Path, typer.Argument(help="The other one.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compare the routers of two files: layers, thresholds, the weights' angle, budgets, provenance.

    A cosine of 1 means that the routers of a layer look at the same direction of its input; 0, that they
    have nothing in common. The exit code is 0 whether or not they differ.

    Example: first-llama diff first.gguf second.gguf
    """
    from first_llama.convert.diff import diff as compare

    found = compare(a, b)
    if json:
        print_json(found.document())
    else:
        print("\n".join(found.page()))
