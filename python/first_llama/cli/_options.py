"""Options that several verbs have, so that they are named and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    Path | None, typer.Option("-m", "--model", help="GGUF file; without it, the default model.")
]
SkipText = Annotated[str, typer.Option(help="auto, off, a fraction of the layers (0.2) or layers (3,5,7).")]
Temp = Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 takes the likeliest token.")]
RepeatPenalty = Annotated[
    float, typer.Option(min=0.1, help="Above 1, makes repetition less likely; small models need it.")
]
System = Annotated[
    str | None, typer.Option(help="System prompt; the default model has its own, '' leaves it out.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; half of the usable CPUs if not given.")
]
NoRepack = Annotated[
    bool,
    typer.Option(
        "--no-repack", help="Leave the weights in the mapped file: slower, for models larger than memory."
    ),
]
Refill = Annotated[
    bool,
    typer.Option(
        "--refill", help="Evaluate earlier answers again, at full depth, when they are part of a prompt."
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of the sampler.")]
