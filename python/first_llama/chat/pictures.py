"""Routes and statistics as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from first_llama.route import Route, Timing

_BARS, _DIGITS = "▁▂▃▄▅▆▇█", "0123456789"
_WIDTH = 60


@dataclass(frozen=True)
class Numbers:
    """What one answer took.

    Attributes:
        n_prompt: tokens of the whole prompt, those that were cached included.
        n_answer: tokens of the answer.
        timing: tokens evaluated and seconds.
        n_skipped: layers that the answer left out.
        n_layer: layers of the model.
    """

    n_prompt: int
    n_answer: int
    timing: Timing
    n_skipped: int
    n_layer: int


def route_lines(route: Route, threshold: float | None, unicode: bool = True) -> list[str]:
    """Draw a route: one bar a layer for its score, a mark below those that were left out.

    Args:
        route: of the last answer.
        threshold: to be named, if it decided.
        unicode: draw bars; else digits from 0 to 9, for terminals that know ASCII only.
    """
    lines = [what_was_skipped(route)]
    bars = _BARS if unicode else _DIGITS
    none = "·" if unicode else "."
    if any(score is not None for score in route.scores):
        limit = f", threshold {threshold:.3g}" if threshold is not None else ""
        lines[0] += f" (mean scores of {route.n_prompt} prompt tokens{limit})"
    picture = "".join(
        none if score is None else bars[min(len(bars) - 1, int(score * len(bars)))] for score in route.scores
    )
    marks = "".join("x" if i in route.skipped else " " for i in range(route.n_layer))
    ruler = "".join(f"{i:<5}" for i in range(0, route.n_layer, 5))
    for start in range(0, route.n_layer, _WIDTH):
        part = slice(start, start + _WIDTH)
        lines += [
            f"score  {picture[part]}",
            f"left   {marks[part]}".rstrip(),
            f"layer  {ruler[part]}".rstrip(),
        ]
    lowest = sorted((score, i) for i, score in enumerate(route.scores) if score is not None)[:5]
    if lowest:
        lines.append("lowest scores: " + "  ".join(f"{i}: {score:.2f}" for score, i in lowest))
    return lines


def what_was_skipped(route: Route) -> str:
    """Return one line: how many layers were left out, and which."""
    if not route.skipped:
        return f"ran all {route.n_layer} layers"
    layers = " ".join(map(str, route.skipped))
    return f"skipped {len(route.skipped)} of {route.n_layer} layers ({layers})"


def summary(numbers: Numbers, route: Route, reason: str | None) -> str:
    """Return the line below an answer that ended for this reason ("stop", "length", "stopped")."""
    speed = numbers.timing.decode_tok_s
    parts = [what_was_skipped(route), f"{numbers.n_answer} tokens" + (f" at {speed:.0f}/s" if speed else "")]
    if reason == "length":
        parts.append("cut at the limit")
    elif reason == "stopped":
        parts.append("stopped")
    return " · ".join(parts)


def stats_lines(turns: Sequence[Numbers]) -> list[str]:
    """Return a table: a line for each turn, and a last one for all."""
    head = ("turn", "prompt", "evaluated", "tok/s", "answer", "tok/s", "skipped")
    rows = [_row(str(i), [numbers]) for i, numbers in enumerate(turns, 1)]
    rows.append(_row("all", turns))
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in [head, *rows]]


def _row(name: str, turns: Sequence[Numbers]) -> tuple[str, ...]:
    timings = [numbers.timing for numbers in turns]
    total = Timing(
        sum(t.n_prompt for t in timings),
        sum(t.prefill_s for t in timings),
        sum(t.n_decode for t in timings),
        sum(t.decode_s for t in timings),
    )
    # The first token of an answer comes from the prompt's rows: only the others leave layers out.
    layers = sum(n.timing.n_decode * n.n_layer for n in turns)
    skipped = sum(n.timing.n_decode * n.n_skipped for n in turns)
    return (
        name,
        str(sum(n.n_prompt for n in turns)),
        str(total.n_prompt),
        _speed(total.prefill_tok_s),
        str(sum(n.n_answer for n in turns)),
        _speed(total.decode_tok_s),
        f"{skipped / layers:.1%}" if layers else "-",
    )


def _speed(tok_s: float | None) -> str:
    return f"{tok_s:.0f}" if tok_s else "-"
