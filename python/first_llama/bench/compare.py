"""Off, auto, and k layers skipped, against the same model with those blocks physically removed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from first_llama.bench.engine import N_WARM, Engine, Sample, Weights, Work
from first_llama.bench.stock import StockWorker
from first_llama.errors import FirstError
from first_llama.route import Route
from first_llama.runtime import Runtime

#: Answer tokens after which the next variant has its turn: what slows the machine down hits all alike.
SLICE = 16

OFF, AUTO, STOCK = "off", "auto", "stock"


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        threads: CPU threads.
        counts: numbers of layers to skip; None takes about a tenth, a fifth and a third of the layers.
        n_decode: answer tokens timed.
        n_prompt: prompt tokens timed.
        repeats: times that every variant is measured.
        stock: folder of an unpatched libllama, or None.
    """

    threads: int = 1
    counts: list[int] | None = None
    n_decode: int = 64
    n_prompt: int = 256
    repeats: int = 5
    stock: Path | None = None


class Timed(Protocol):
    """What is timed: an Engine, or a StockWorker."""

    def prefill(self) -> float:
        """Evaluate the prompt from an empty cache and return the seconds."""

    def decode(self, start: int, stop: int) -> float:
        """Evaluate these tokens of the answer and return the seconds."""


@dataclass
class Variant:
    """One thing that is timed, and its samples, one a repeat."""

    name: str
    skipped: list[int]
    engine: Timed
    samples: list[Sample] = field(default_factory=list)


def compare(
    path: Path, settings: Settings, folder: Path, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Time all variants of a model and return the document that `first-llama bench --json` prints.

    Args:
        path: GGUF file; without routers "auto" equals "off", and the layers are spread over the middle.
        settings: what to measure.
        folder: scratch folder for the pruned files.
        progress: called with the number of rounds done and their total.

    Raises:
        FirstError: if a model cannot be loaded or pruned, or more layers are asked for than may be skipped.
    """
    with ExitStack() as stack:
        weights = stack.enter_context(closing(Weights(path)))
        tokens = weights.tokens(settings.n_prompt + settings.n_decode + N_WARM)
        work = Work(tokens[: settings.n_prompt], tokens[settings.n_prompt :])

        def engine(source: Weights, skip: object) -> tuple[Engine, Runtime]:
            made = stack.enter_context(closing(Engine(source, work, settings.threads)))
            runtime = Runtime(source.model, made.ctx)
            runtime.set_skip(skip)
            made.phase = runtime.phase
            return made, runtime

        routed, runtime = engine(weights, AUTO)
        routed.prefill()
        auto = runtime.route()
        variants = [Variant(OFF, [], engine(weights, OFF)[0]), Variant(AUTO, auto.skipped, routed)]
        for count in _counts(settings.counts, runtime):
            layers = choose_layers(count, auto, runtime.skippable)
            variants.append(Variant(f"{count} layers", layers, engine(weights, layers)[0]))
        pruned: dict[tuple[int, ...], Variant] = {}
        for removed in sorted({tuple(v.skipped) for v in variants if v.skipped}):
            small = stack.enter_context(closing(Weights(_prune(path, removed, folder))))
            pruned[removed] = Variant("pruned", list(removed), engine(small, OFF)[0])
        everything = [*variants, *pruned.values()]
        stock = None
        if settings.stock:
            worker = stack.enter_context(StockWorker(settings.stock, path, settings.threads, work))
            stock = Variant(STOCK, [], worker)
            everything.append(stock)
        _run(everything, settings, progress)
        rows = [_row(v, variants[0], pruned.get(tuple(v.skipped)), settings) for v in variants]
        document = {
            "model": str(path),
            "n_layer": runtime.n_layer,
            "has_routers": runtime.available,
            "threads": settings.threads,
            "n_prompt": settings.n_prompt,
            "n_decode": settings.n_decode,
            "repeats": settings.repeats,
            "rows": rows,
        }
        if runtime.available:
            document["routers_over_off_prefill"] = _ratio(variants[0], variants[1], _prefill)[0]
        if stock:
            document["off_over_stock_decode"] = _ratio(stock, variants[0], _decode)[0]
            document["off_over_stock_prefill"] = _ratio(stock, variants[0], _prefill)[0]
        return document


def choose_layers(count: int, route: Route, skippable: Sequence[int]) -> list[int]:
    """Return the `count` lowest-scored layers, or, without scores, layers spread evenly over the middle.

    Raises:
        FirstError: if fewer layers may be skipped.
    """
    if count > len(skippable):
        raise FirstError(f"--layers {count}: this model may skip at most {len(skippable)} layers")
    scored = [(score, i) for i in skippable if (score := route.scores[i]) is not None]
    if len(scored) >= count:
        return sorted(i for _, i in sorted(scored)[:count])
    # Leave out the ends, which models can spare least, as long as enough remains between them.
    spare = min(len(skippable) // 4, (len(skippable) - count) // 2)
    middle = skippable[spare : len(skippable) - spare]
    return [middle[(2 * k + 1) * len(middle) // (2 * count)] for k in range(count)]


def _counts(asked: list[int] | None, runtime: Runtime) -> list[int]:
    if asked is not None:
        return asked
    limit = len(runtime.skippable)
    return sorted({min(limit, max(1, round(runtime.n_layer * f))) for f in (0.1, 0.2, 0.3)} - {0})


def _prune(path: Path, layers: Sequence[int], folder: Path) -> Path:
    from first_llama.convert.prune import prune

    target = folder / f"pruned-{'-'.join(map(str, layers))}.gguf"
    prune(path, list(layers), target)
    return target


def _run(variants: Sequence[Variant], settings: Settings, progress: Callable[[int, int], None]) -> None:
    """Time every variant once a repeat, after one more round to warm up."""
    total = settings.repeats + 1
    for repeat in range(total):
        progress(repeat, total)
        prefill, decode = [0.0] * len(variants), [0.0] * len(variants)
        for i in _rotated(len(variants), repeat):
            prefill[i] = variants[i].engine.prefill()
        for turn, start in enumerate(range(0, settings.n_decode, SLICE)):
            stop = min(start + SLICE, settings.n_decode)
            for i in _rotated(len(variants), repeat + turn):
                decode[i] += variants[i].engine.decode(start, stop)
        if repeat > 0:
            for variant, *seconds in zip(variants, prefill, decode, strict=True):
                variant.samples.append(Sample(*seconds))
    progress(total, total)


def _rotated(n: int, turn: int) -> list[int]:
    """Return 0..n-1 in an order that starts elsewhere each turn."""
    return [(turn + i) % n for i in range(n)]


def _prefill(sample: Sample) -> float:
    return sample.prefill_s


def _decode(sample: Sample) -> float:
    return sample.decode_s


def _ratio(slow: Variant, fast: Variant, seconds: Callable[[Sample], float]) -> tuple[float, float, float]:
    """Return median, least and greatest of how many times faster `fast` was, repeat by repeat."""
    ratios = [seconds(a) / seconds(b) for a, b in zip(slow.samples, fast.samples, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def _row(variant: Variant, off: Variant, pruned: Variant | None, settings: Settings) -> dict[str, Any]:
    row: dict[str, Any] = {
        "skip": variant.name if variant.name in (OFF, AUTO) else variant.skipped,
        "n_skipped": len(variant.skipped),
        "skipped": variant.skipped,
        "prefill_tok_s": settings.n_prompt / statistics.median(map(_prefill, variant.samples)),
        "decode_tok_s": settings.n_decode / statistics.median(map(_decode, variant.samples)),
    }
    for name, ratio in (
        ("speedup", _ratio(off, variant, _decode)),
        ("pruned_speedup", _ratio(off, pruned, _decode) if pruned else (None, None, None)),
        ("efficiency", _ratio(pruned, variant, _decode) if pruned else (None, None, None)),
    ):
        row[name], row[f"{name}_min"], row[f"{name}_max"] = ratio
    return row
