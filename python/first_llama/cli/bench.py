"""`first-llama bench`: paired, interleaved timings."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from first_llama.cli import _options
from first_llama.cli._console import Logs, print_json
from first_llama.cli._model import model_file


def bench(
    model: _options.Model = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    layers: Annotated[
        str, typer.Option(help="How many layers to skip, such as 3,6,9; 'default' takes 10, 20 and 30 %.")
    ] = "default",
    n: Annotated[int, typer.Option("-n", min=1, help="Answer tokens to time.")] = 64,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Prompt tokens to time.")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="How often each variant is timed.")] = 5,
    stock: Annotated[
        Path | None,
        typer.Option(help="Folder of an unpatched libllama, built with the same flags, to compare with."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's log.")] = False,
) -> None:
    """Time a model at full depth, with layers skipped, and with the same layers removed from the file.

    Speed-ups are medians over repeats of the ratio within each repeat, in tokens of the answer a second.
    Efficiency is the speed-up divided by that of the file without the blocks. The stock library runs in
    processes of its own, beside ours at full depth, in new pairs of processes again and again. All other
    models are in memory at once.

    Example: first-llama bench --threads 1 --layers 3,6,9
    """
    counts = _counts(layers)
    path = model_file(model)

    from first_llama import _library

    _library.first()
    from first_llama.bench.compare import Settings, compare

    logs = Logs(verbose)
    settings = Settings(threads, counts, n, prompt_tokens, repeats, stock)
    try:
        with tempfile.TemporaryDirectory(prefix="first-llama-bench-") as folder, _Progress() as progress:
            document = compare(path, settings, Path(folder), progress.update)
    finally:
        logs.flush()
    if json:
        print_json(document)
    else:
        _print_table(document)


def _counts(text: str) -> list[int] | None:
    if text == "default":
        return None
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = []
    if not counts or counts[0] < 1:
        raise typer.BadParameter(
            f"--layers {text!r} is not understood; give numbers such as 3,6,9, or default"
        )
    return counts


class _Progress:
    """A bar with the time left on a terminal; a line for each tenth when stderr is a file or pipe."""

    def __enter__(self) -> _Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._shown = -1
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("timing"), BarColumn(), TimeRemainingColumn(), console=Console(stderr=True)
            )
            self._bar.start()
            self._task = self._bar.add_task("timing", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, total: int) -> None:
        if self._bar:
            self._bar.update(self._task, completed=done, total=total)
        elif done * 10 // total > self._shown:
            self._shown = done * 10 // total
            print(f"timing: {done} of {total}", file=sys.stderr, flush=True)


def _print_table(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{Path(document['model']).name}, {document['threads']} thread(s), tokens a second")
    for name in ("skip", "layers", "prefill", "decode", "speed-up", "removed", "efficiency"):
        table.add_column(name, justify="left" if name == "skip" else "right")
    for row in document["rows"]:
        table.add_row(
            row["skip"] if isinstance(row["skip"], str) else " ".join(map(str, row["skip"])),
            str(row["n_skipped"]),
            f"{row['prefill_tok_s']:.0f}",
            f"{row['decode_tok_s']:.1f}",
            *(_spread(row, name) for name in ("speedup", "pruned_speedup", "efficiency")),
        )
    # In a file or a pipe there is no width to keep to.
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for name, what in (
        ("off_over_stock_decode", "off ÷ stock library, decode"),
        ("off_over_stock_prefill", "off ÷ stock library, prefill"),
        ("routers_over_off_prefill", "routers on ÷ off, prefill"),
    ):
        if name in document:
            console.print(f"{what}: {_spread(document, name)}", highlight=False)


def _spread(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return "-"
    return f"{row[name]:.3f} ({row[f'{name}_min']:.2f}-{row[f'{name}_max']:.2f})"
