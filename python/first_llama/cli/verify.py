"""`first-llama verify`: does a GGUF file work, and is it still its base when nothing is skipped?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from first_llama.cli._console import n_cpus, print_json


def verify(
    file: Annotated[Path, typer.Argument(help="GGUF file, or the first of its parts.")],
    base: Annotated[
        Path | None,
        typer.Option(help="GGUF file without routers whose outputs it must have when nothing is skipped."),
    ] = None,
    stock: Annotated[
        Path | None, typer.Option(help="Folder of an unpatched libllama, in place of the one built with us.")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: all.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check a GGUF file: its routers and fingerprint, that it loads, and its outputs at full depth.

    The outputs are compared bit for bit with those of an unpatched llama.cpp, if one was built, and with
    those of --base. The exit code is 1 when a check fails; a check that cannot be made fails nothing.

    Example: first-llama verify model-first.gguf --base model.gguf
    """
    from first_llama.verify.checks import passed
    from first_llama.verify.checks import verify as check

    checks = check(file, stock=stock, base=base, threads=threads or n_cpus())
    ok = passed(checks)
    if json:
        print_json({"file": str(file), "ok": ok, "checks": [asdict(c) for c in checks]})
    else:
        for found in checks:
            line = f"{found.mark:<5} {found.name:<12} {found.detail}"
            print("".join(c if c.isprintable() else "?" for c in line))
    if not ok:
        raise typer.Exit(1)
