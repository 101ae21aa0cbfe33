"""`first-llama inspect`: show and check the routers of a GGUF file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from first_llama.cli._console import print_json
from first_llama.errors import FirstError


def inspect(
    file: Annotated[Path, typer.Argument(help="GGUF file, or the first of its parts.")],
    plot: Annotated[
        Path | None,
        typer.Option(help="Also draw them into a .png or .svg file, which is replaced; needs matplotlib."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show the routers of a GGUF file and check them against every rule of the format.

    The exit code is 1 when the file has routers that are not valid, or is not a GGUF file; a file
    without routers is no error, unless they are to be plotted.

    Example: first-llama inspect model-first.gguf --plot routers.svg
    """
    from first_llama.convert.inspect import inspect as read
    from first_llama.convert.plot import SUFFIXES, save_plot

    if plot is not None and plot.suffix.lower() not in SUFFIXES:
        raise typer.BadParameter(f"--plot {plot} is neither .png nor .svg; choose one of the two endings")
    found = read(file)
    if json:
        print_json(found.document())
    else:
        encoding = sys.stdout.encoding or "ascii"
        page = "\n".join(found.page(unicode=encoding.lower().replace("-", "") == "utf8"))
        print(page.encode(encoding, "replace").decode(encoding))
    if not found.ok:
        raise typer.Exit(1)
    if plot is not None:
        if found.reading.routers is None:
            raise FirstError(f"{file} has no routers to plot; add them with `first-llama embed`")
        save_plot(found.reading.routers, plot, found.title())
        print(f"wrote {plot}", file=sys.stderr)
