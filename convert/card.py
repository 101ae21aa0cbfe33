"""A model card: what a file was made of, what was trained, and how to run it, as Markdown.

Everything in it is read from the file, the run or a benchmark's document; what nobody said is said to be
unknown or left out. Text of strangers stands in code spans, where Markdown, HTML and links mean nothing.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from first_llama import __version__
from first_llama.convert.bounded import read_bounded
from first_llama.convert.build import Built
from first_llama.convert.container import Container
from first_llama.convert.routers import Routers, TrainValue
from first_llama.errors import FirstError

MAX_BENCH_BYTES = 1 << 20
_MOST_LETTERS = 200
_MOST_TRAIN = 32

Speed = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BenchRow(BaseModel):
    """A setting that was timed."""

    skip: str | list[int]
    n_skipped: int = Field(ge=0)
    prefill_tok_s: Speed
    decode_tok_s: Speed
    speedup: Speed | None


class Bench(BaseModel):
    """What a card takes of the document of `first-llama bench --json`."""

    model: str
    n_layer: int = Field(ge=1)
    threads: int = Field(ge=1)
    n_prompt: int = Field(ge=1)
    n_decode: int = Field(ge=1)
    repeats: int = Field(ge=1)
    rows: list[BenchRow] = Field(min_length=1, max_length=64)


def load_bench(path: Path) -> Bench:
    """Read the document of `first-llama bench --json`.

    Raises:
        FirstError: if it is missing, too large, or another document.
    """
    raw = read_bounded(
        path, MAX_BENCH_BYTES, "write it with `first-llama bench --json`", "a benchmark's document"
    )
    try:
        return Bench.model_validate_json(raw)
    except ValidationError as e:
        where = ".".join(str(p) for p in e.errors()[0]["loc"]) or "the file"
        raise FirstError(
            f"{path}: {code(where)[1:-1]}: {e.errors()[0]['msg']}; write it with `first-llama bench --json`"
        ) from e


def card(
    built: Built, source: Container, source_name: str, routers: Routers | None, bench: Bench | None = None
) -> str:
    """Return the page.

    Args:
        built: the file.
        source: the header of what it was made of.
        source_name: file or folder that it was made of.
        routers: the file's routers; None if it has none.
        bench: timings, which are quoted with the name of the file that was timed.
    """
    sections = [
        [f"# {code(built.path.name)}", "", *_lead(routers)],
        _base(source, source_name),
        _file(built, source),
        _training(built, routers),
        _budgets(routers),
        _usage(built, routers),
        _speeds(bench),
        [f"Written by first-llama {__version__} from the file's metadata."],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def code(text: str) -> str:
    """Return a text as a code span of one line; nothing in it is markup, HTML or a link."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split()).replace("`", "'")
    return f"`{line[:_MOST_LETTERS] or ' '}`"


def _lead(routers: Routers | None) -> list[str]:
    if routers is None:
        return ["A GGUF model without routers: every layer always runs."]
    return [
        "A GGUF model with routers in the style of FiRST: the answer to a prompt runs without up to "
        f"{routers.layers.size} of the {routers.block_count} layers, those that this prompt does not need."
    ]


def _base(source: Container, source_name: str) -> list[str]:
    lines = ["## Base model", ""]
    lines.append(f"- made from: {code(source_name)}")
    for key, what in (
        ("general.name", "name"),
        ("general.organization", "by"),
        ("general.license", "licence"),
        ("general.base_model.0.name", "itself made from"),
    ):
        value = source.scalar(key)
        if isinstance(value, str) and value.strip():
            lines.append(f"- {what}: {code(value)}")
        elif key == "general.license":
            lines.append("- licence: the file does not say")
    return lines


def _file(built: Built, source: Container) -> list[str]:
    types = ", ".join(f"{code(name)} {size / 1e6:.1f} MB" for name, size in built.tensor_types.items())
    lines = [
        "## File",
        "",
        f"- {code(source.architecture)}, {source.block_count} layers, width {source.embedding_length}",
        f"- {built.n_bytes / 1e6:.1f} MB; weights: {types}",
    ]
    if built.requantized:
        lines.append(f"- quantized from {code(built.requantized)}, so its weights were rounded twice")
    return lines


def _training(built: Built, routers: Routers | None) -> list[str]:
    if routers is None and not built.n_merged:
        return []
    lines = ["## Training", ""]
    if routers is not None:
        lines.append(
            f"- routers: {routers.layers.size} linear ones, for the layers {_ranges(routers.layers.tolist())}"
        )
    lines.append(
        f"- adapter: LoRA, merged into {built.n_merged} weights"
        if built.n_merged
        else "- adapter: none merged here"
    )
    train = routers.train if routers else {}
    if not any("licen" in name for name in train):
        lines.append("- licence of the training data: the run does not say")
    return lines + [f"- {code(name)}: {_value(value)}" for name, value in list(train.items())[:_MOST_TRAIN]]


def _value(value: TrainValue) -> str:
    if isinstance(value, str):
        return code(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value).lower()


def _budgets(routers: Routers | None) -> list[str]:
    if routers is None:
        return []
    lines = ["## Layers left out", ""]
    lines.append(f"A layer is left out where its score is below {routers.threshold:.4g}.")
    if not routers.budget_fraction.size:
        return lines
    lines[-1] += " Thresholds calibrated for other fractions:"
    lines += ["", "| part of the layers | threshold |", "|---|---|"]
    pairs = zip(routers.budget_fraction.tolist(), routers.budget_threshold.tolist(), strict=True)
    return lines + [f"| {fraction:.1%} | {threshold:.4f} |" for fraction, threshold in pairs]


def _usage(built: Built, routers: Routers | None) -> list[str]:
    name = "".join(c if c.isprintable() else "?" for c in built.path.name).replace("`", "?")
    name = shlex.quote(name if not name.startswith("-") else f"./{name}")
    lines = ["## Usage", "", "```sh", f"first-llama run -m {name} 'Why is the sky blue?'"]
    if routers is not None and routers.budget_fraction.size:
        lines.append(
            f"first-llama run -m {name} --skip {routers.budget_fraction[0]:.3g} 'Why is the sky blue?'"
        )
    lines.append("```")
    if routers is not None:
        lines += ["", "Stock llama.cpp loads the file too: it ignores the routers and runs every layer."]
    return lines


def _speeds(bench: Bench | None) -> list[str]:
    if bench is None:
        return []
    lines = [
        "## Speed",
        "",
        f"Of {code(Path(bench.model).name)} on {bench.threads} CPU thread(s), {bench.n_prompt} prompt tokens "
        f"and {bench.n_decode} answer tokens, medians of {bench.repeats} (`first-llama bench`):",
        "",
        "| skip | layers left out | prompt, tokens/s | answer, tokens/s | against none left out |",
        "|---|---|---|---|---|",
    ]
    for row in bench.rows:
        skip = code(row.skip).replace("|", "\\|") if isinstance(row.skip, str) else _ranges(row.skip)
        ratio = "-" if row.speedup is None else f"{row.speedup:.3f}"
        cells = (
            skip,
            f"{row.n_skipped} of {bench.n_layer}",
            f"{row.prefill_tok_s:.1f}",
            f"{row.decode_tok_s:.1f}",
        )
        lines.append(f"| {' | '.join((*cells, ratio))} |")
    return lines


def _ranges(layers: list[int]) -> str:
    """Return ascending numbers in short: 1-3, 5."""
    found: list[list[int]] = []
    for layer in sorted(layers):
        if found and found[-1][-1] + 1 == layer:
            found[-1].append(layer)
        else:
            found.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found) or "none"
