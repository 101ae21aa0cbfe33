"""`first-llama convert`: a GGUF file from a model, a training run and a type, in one go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from first_llama.cli._console import n_cpus, print_json
from first_llama.errors import FirstError

if TYPE_CHECKING:
    from first_llama.convert.build import Built
    from first_llama.convert.routers import Routers


def convert(
    model: Annotated[
        Path,
        typer.Argument(help="Hugging Face model's folder, or GGUF file (of a split one, the first part)."),
    ],
    run: Annotated[Path | None, typer.Argument(help="Folder that `first-llama train` wrote.")] = None,
    *,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="GGUF file to write, or a folder: it gets a name by its metadata."
        ),
    ],
    kind: Annotated[
        str | None, typer.Option("--type", help="Type to quantize to, such as Q4_K_M; else the model's own.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(help="Importance matrix for quantizing (GGUF, from llama-imatrix).")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Skip layers that score below this, in place of the run's own value.")
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter/--no-adapter", help="Merge the run's LoRA adapter, if it has one.")
    ] = True,
    lora_gguf: Annotated[
        bool,
        typer.Option(
            "--lora-gguf", help="Write the run's adapter alone, as a LoRA GGUF file for this MODEL."
        ),
    ] = False,
    card: Annotated[Path | None, typer.Option(help="Also write a model card (Markdown).")] = None,
    bench: Annotated[
        Path | None, typer.Option(help="Document of `first-llama bench --json`, quoted in the card.")
    ] = None,
    llama_cpp_dir: Annotated[
        Path | None, typer.Option(help="llama.cpp tree whose convert_hf_to_gguf.py is used.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the Python code that comes with the model.")
    ] = False,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: all.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make one GGUF file: convert the model, merge the run's adapter, embed its routers, quantize, check.

    A Hugging Face folder is converted by llama.cpp's own script, which needs the extra [train]. A GGUF file
    of 16 or 32 bits is the better start for quantizing: a quantized one is rounded twice. With --lora-gguf
    nothing is merged: the adapter becomes a file that llama.cpp adds to MODEL while it runs.

    Example: first-llama convert models/SmolLM2-135M-Instruct run/ -o smollm2-first.gguf --type Q4_K_M
    """
    from first_llama.convert.build import Recipe, build
    from first_llama.convert.inspect import inspect

    if bench is not None and card is None:
        raise typer.BadParameter("--bench is for the model card; name its file with --card")
    if not model.exists():
        raise FirstError(
            f"{model} does not exist; give a GGUF file, or the folder of a model that was downloaded"
        )
    if lora_gguf:
        given = {"--type": kind, "--imatrix": imatrix, "--threshold": threshold, "--card": card}
        refused = [name for name, value in given.items() if value is not None]
        refused += [] if adapter else ["--no-adapter"]
        if refused:
            raise typer.BadParameter(f"--lora-gguf writes an adapter alone; leave {refused[0]} out")
        _lora(model, run, output, force, json)
        return
    page = _CardPage(card, bench, force) if card else None
    recipe = Recipe(
        source=model,
        run=run,
        kind=kind,
        adapter=adapter,
        threshold=threshold,
        imatrix=imatrix,
        llama_cpp=llama_cpp_dir,
        trust_remote_code=trust_remote_code,
        threads=threads or n_cpus(),
    )
    loaded: dict[str, Any] = {}
    built = build(
        recipe,
        output,
        force=force,
        check=lambda path: loaded.update(_check(path, threads or n_cpus())),
        progress=_Steps().say,
    )
    found = inspect(built.path)
    if page:
        page.write(built, model, found.reading.routers)
    document = _document(built, found.document(), loaded) | {"card": str(card) if card else None}
    if json:
        print_json(document)
    else:
        print("\n".join(_page(document)), file=sys.stderr)


def _lora(model: Path, run: Path | None, output: Path, force: bool, json: bool) -> None:
    from first_llama.convert.lora_gguf import own_name, write_lora

    if run is None:
        raise typer.BadParameter("--lora-gguf needs the folder of a run that trained an adapter")
    if model.is_dir():
        raise FirstError(
            f"{model} is a folder; give the GGUF file that the adapter will run on "
            f"(`first-llama convert {model} -o MODEL.gguf` makes one)"
        )
    if output.is_dir():
        output /= own_name(model)
    made = write_lora(model, run, output, force)
    if json:
        names = ("n_bytes", "n_pairs", "alpha", "architecture")
        document = {name.replace("n_bytes", "bytes"): getattr(made, name) for name in names}
        print_json({"output": str(made.path), **document})
    else:
        size = f"{made.n_bytes / 1e6:.1f} MB, for {made.n_pairs} weights of a {made.architecture} model"
        print(f"wrote      {made.path}, {size}", file=sys.stderr)


class _CardPage:
    """A model card that is checked for before the work and written after it."""

    def __init__(self, path: Path, bench: Path | None, force: bool) -> None:
        from first_llama.convert.atomic import refuse_existing
        from first_llama.convert.card import load_bench

        refuse_existing(path, force)
        self._path = path
        self._bench = load_bench(bench) if bench else None

    def write(self, built: Built, model: Path, routers: Routers | None) -> None:
        """Write it whole."""
        from first_llama.convert.atomic import write_bytes
        from first_llama.convert.card import card

        text = card(built, built.source, model.absolute().name, routers, self._bench)
        write_bytes(self._path, text.encode("utf-8", "replace"))


class _Steps:
    """Says on stderr when a step begins, and every tenth of it."""

    def __init__(self) -> None:
        self._last: tuple[str, int] = ("", -1)

    def say(self, step: str, done: int, total: int) -> None:
        """Print a line if there is news."""
        tenth = 10 * done // total if total else 0
        if (step, tenth) != self._last:
            self._last = (step, tenth)
            print(f"{step}: {done}/{total}" if total else f"{step} ...", file=sys.stderr, flush=True)


def _check(path: Path, threads: int) -> dict[str, Any]:
    """Load and evaluate the new file with our runtime; FirstError if that does not work."""
    from first_llama.verify.checks import load

    try:
        return {"skipped": load(path, threads)[0].skipped}
    except FirstError as e:
        raise FirstError(f"the new file does not work, so it was not kept: {e}") from e


def _document(built: Built, found: dict[str, Any], loaded: dict[str, Any]) -> dict[str, Any]:
    names = ("architecture", "n_layer", "n_embd", "has_routers", "layers", "threshold", "budgets", "base")
    return {
        "output": str(built.path),
        "bytes": built.n_bytes,
        "source_bytes": built.source_bytes,
        "types": built.tensor_types,
        "n_merged": built.n_merged,
        "requantized_from": built.requantized or None,
        "skipped": loaded["skipped"],
        **{name: found[name] for name in names},
    }


def _page(made: dict[str, Any]) -> list[str]:
    types = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in made["types"].items())
    size, before = made["bytes"] / 1e6, made["source_bytes"] / 1e6
    lines = [
        f"wrote      {made['output']}, {size:.1f} MB ({before:.1f} MB before)",
        f"model      {made['architecture']}, {made['n_layer']} layers, width {made['n_embd']}",
        f"types      {types}",
        f"adapter    merged into {made['n_merged']} tensors" if made["n_merged"] else "adapter    none",
    ]
    if made["has_routers"]:
        count = len(made["layers"])
        lines.append(f"routers    {count} of {made['n_layer']} layers, threshold {made['threshold']:g}")
        budgets = ", ".join(f"{b['fraction']:.0%} below {b['threshold']:.3f}" for b in made["budgets"])
        lines.append(f"budgets    {budgets or 'none'}")
    else:
        lines.append("routers    none")
    if made["card"]:
        lines.append(f"card       {made['card']}")
    if made["requantized_from"]:
        was = made["requantized_from"]
        lines.append(f"note       the source was {was} already; a 16-bit source gives better quality")
    return ["".join(c if c.isprintable() else "?" for c in line) for line in lines]
