"""Off, auto, and k layers skipped, against the same model with those blocks physically removed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from first_llama._library import lib_folder
from first_llama.bench.engine import N_WARM, Engine, Sample, Weights, Work
from first_llama.bench.stock import off_over_stock
from first_llama.errors import FirstError
from first_llama.route import Route
from first_llama.runtime import Runtime

#: Answer tokens after which the next variant has its turn: what slows the machine down hits all alike.
SLICE = 16

#: Pairs of processes, with our library and the stock one, for each repeat.
PAIRS = 3

OFF, AUTO = "off", "auto"


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
    """What is timed; an Engine."""

    def prefill(self) -> float:
        """Evaluate the prompt from an empty cache and return the seconds."""

    def decode(self, start: int, stop: int) -> float:
        """Evaluate these tokens of the answer and return the seconds."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass
class Variant:
    """One thing that is timed, and its samples, one a repeat.

    Every repeat reads the weights anew, in another order, and opens a new engine: where weights and buffers
    happen to lie in memory makes a difference of some percent that would otherwise last for all repeats.

    Attributes:
        name: what the table calls it.
        skipped: the layers that it does without.
        path: the file that it evaluates.
        open: makes the engine, given the weights of that file.
        samples: what was measured.
    """

    name: str
    skipped: list[int]
    path: Path
    open: Callable[[Weights], Timed]
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
    pairs = PAIRS * settings.repeats if settings.stock else 0
    total = settings.repeats + 1 + pairs
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    progress(0, total)
    with closing(Weights(path)) as weights:
        tokens = weights.tokens(settings.n_prompt + settings.n_decode + N_WARM)
        work = Work(tokens[: settings.n_prompt], tokens[settings.n_prompt :])
        with closing(_engine(work, settings.threads, AUTO, weights)) as engine:
            engine.prefill()
            runtime = Runtime(weights.model, engine.ctx)
            auto, n_layer, available, skippable = (
                runtime.route(), runtime.n_layer, runtime.available, runtime.skippable,
            )  # fmt: skip

    def variant(name: str, skipped: list[int], file: Path, skip: object) -> Variant:
        return Variant(name, skipped, file, partial(_engine, work, settings.threads, skip))

    variants = [variant(OFF, [], path, OFF), variant(AUTO, auto.skipped, path, AUTO)]
    for count in _counts(settings.counts, n_layer, len(skippable)):
        layers = choose_layers(count, auto, skippable)
        variants.append(variant(f"{count} layers", layers, path, layers))
    pruned: dict[tuple[int, ...], Variant] = {}
    for removed in sorted({tuple(v.skipped) for v in variants if v.skipped}):
        pruned[removed] = variant("pruned", list(removed), _prune(path, removed, folder), OFF)
    _run(_alternating(variants, list(pruned.values())), settings, advance)
    document = {
        "model": str(path),
        "n_layer": n_layer,
        "has_routers": available,
        "threads": settings.threads,
        "n_prompt": settings.n_prompt,
        "n_decode": settings.n_decode,
        "repeats": settings.repeats,
        "rows": [_row(v, variants[0], pruned.get(tuple(v.skipped)), settings) for v in variants],
    }
    if available:
        _report(document, "routers_over_off_prefill", _ratios(variants[0], variants[1], _prefill))
    if settings.stock:
        ours = lib_folder()
        assert ours is not None  # else no model would have been loaded
        ratios = off_over_stock(ours, settings.stock, path, settings.threads, work, pairs, advance)
        document["pairs"] = pairs
        for name, values in ratios.items():
            _report(document, f"off_over_stock_{name}", values)
    return document


def _engine(work: Work, threads: int, skip: object, source: Weights) -> Engine:
    engine = Engine(source, work, threads)
    runtime = Runtime(source.model, engine.ctx)
    runtime.set_skip(skip)
    engine.phase = runtime.phase
    return engine


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


def _counts(asked: list[int] | None, n_layer: int, limit: int) -> list[int]:
    if asked is not None:
        return asked
    return sorted({min(limit, max(1, round(n_layer * f))) for f in (0.1, 0.2, 0.3)} - {0})


def _prune(path: Path, layers: Sequence[int], folder: Path) -> Path:
    from first_llama.convert.prune import prune

    target = folder / f"pruned-{'-'.join(map(str, layers))}.gguf"
    prune(path, list(layers), target)
    return target


def _alternating(variants: Sequence[Variant], pruned: Sequence[Variant]) -> list[Variant]:
    """Return all so that no two neighbours share weights, which the first would leave in the cache."""
    return [v for pair in zip_longest(variants, pruned) for v in pair if v is not None]


def _run(variants: Sequence[Variant], settings: Settings, advance: Callable[[], None]) -> None:
    """Time every variant once a repeat, after one more round to warm up."""
    for repeat in range(settings.repeats + 1):
        prefill, decode = [0.0] * len(variants), [0.0] * len(variants)
        with ExitStack() as stack:
            files = list(dict.fromkeys(v.path for v in variants))
            weights = {
                files[i]: stack.enter_context(closing(Weights(files[i], mmap=False)))
                for i in _rotated(len(files), repeat)
            }
            engines = [stack.enter_context(closing(v.open(weights[v.path]))) for v in variants]
            for i in _rotated(len(variants), repeat):
                prefill[i] = engines[i].prefill()
            for turn, start in enumerate(range(0, settings.n_decode, SLICE)):
                stop = min(start + SLICE, settings.n_decode)
                for i in _rotated(len(variants), repeat + turn):
                    decode[i] += engines[i].decode(start, stop)
        if repeat > 0:
            for variant, *seconds in zip(variants, prefill, decode, strict=True):
                variant.samples.append(Sample(*seconds))
        advance()


def _rotated(n: int, turn: int) -> list[int]:
    """Return 0..n-1 in an order that starts elsewhere each turn."""
    return [(turn + i) % n for i in range(n)]


def _prefill(sample: Sample) -> float:
    return sample.prefill_s


def _decode(sample: Sample) -> float:
    return sample.decode_s


def _ratios(slow: Variant, fast: Variant, seconds: Callable[[Sample], float]) -> list[float]:
    """Return how many times faster `fast` was, repeat by repeat."""
    return [seconds(a) / seconds(b) for a, b in zip(slow.samples, fast.samples, strict=True)]


def _report(row: dict[str, Any], name: str, ratios: Sequence[float]) -> None:
    """Put the median under the name, and the least and greatest beside it; None where there are no ratios."""
    row[name] = statistics.median(ratios) if ratios else None
    row[f"{name}_min"], row[f"{name}_max"] = min(ratios, default=None), max(ratios, default=None)


def _row(variant: Variant, off: Variant, pruned: Variant | None, settings: Settings) -> dict[str, Any]:
    row: dict[str, Any] = {
        "skip": variant.name if variant.name in (OFF, AUTO) else variant.skipped,
        "n_skipped": len(variant.skipped),
        "skipped": variant.skipped,
        "prefill_tok_s": settings.n_prompt / statistics.median(map(_prefill, variant.samples)),
        "decode_tok_s": settings.n_decode / statistics.median(map(_decode, variant.samples)),
    }
    for name, ratios in (
        ("speedup", _ratios(off, variant, _decode)),
        ("pruned_speedup", _ratios(off, pruned, _decode) if pruned else []),
        ("efficiency", _ratios(pruned, variant, _decode) if pruned else []),
    ):
        _report(row, name, ratios)
    return row
