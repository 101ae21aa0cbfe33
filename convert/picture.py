"""The routers of a file as a small picture for a terminal: a bar a layer, the threshold across them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from first_llama.convert.routers import Routers

#: Rows at most; a model with more skippable layers shows some of them in one row.
MAX_ROWS = 32
#: Cells of a bar, which stand for scores from 0 to 1; a row has 80 columns at most.
BAR_WIDTH = 40
MAP_WIDTH = 64

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Strokes:
    full: str
    range: str
    threshold: str


_ASCII = _Strokes("=", "-", "|")
_UNICODE = _Strokes("█", "░", "│")


def resting_scores(routers: Routers) -> F64:
    """Return sigmoid(bias) [L]: what a layer scores where its weights see nothing."""
    # tanh does not overflow where exp would
    scores: F64 = 0.5 + 0.5 * np.tanh(0.5 * routers.bias.astype(np.float64))
    return scores


def weight_norms(routers: Routers) -> F64:
    """Return the length of each layer's weights [L]: how far a prompt can move its score."""
    rows = routers.weight.reshape(routers.layers.size, routers.embedding_length).astype(np.float64)
    norms: F64 = np.sqrt((rows * rows).sum(axis=1))
    return norms


def layer_map(routers: Routers) -> list[str]:
    """Return a mark for each layer of the model: "#" always runs, "o" may be skipped."""
    skippable = set(routers.layers.tolist())
    marks = "".join("o" if i in skippable else "#" for i in range(routers.block_count))
    return [
        f"  {start:>4}     {marks[start : start + MAP_WIDTH]}" for start in range(0, len(marks), MAP_WIDTH)
    ]


def draw(routers: Routers, unicode: bool = False) -> list[str]:
    """Return the picture's lines, each of at most 80 columns, at most MAX_ROWS + 3 of them.

    Args:
        routers: valid routers.
        unicode: draw with blocks in place of ASCII.
    """
    strokes = _UNICODE if unicode else _ASCII
    scores, norms = resting_scores(routers), weight_norms(routers)
    size = math.ceil(scores.size / MAX_ROWS)
    at = _cell(routers.threshold)
    lines = [
        f"resting    sigmoid(bias) from 0 to 1, the threshold {routers.threshold:.3g} at {strokes.threshold}",
        f"  {'layer':>7} {' ' * BAR_WIDTH} {'score':>11} {'weight norm':>13}",
    ]
    for start in range(0, scores.size, size):
        part = slice(start, start + size)
        bar = _bar(scores[part], routers.threshold, at, strokes)
        score, norm = _span(scores[part], "{:.2f}"), _span(norms[part], "{:.3g}")
        lines.append(f"  {_names(routers.layers[part]):>7} {bar} {score:>11} {norm:>13}")
    if size > 1:
        lines.append(
            f"  {size} layers a row: {strokes.full} up to the lowest, {strokes.range} to the highest"
        )
    return lines


def _cell(value: float) -> int:
    return min(BAR_WIDTH - 1, int(value * BAR_WIDTH))


def _bar(scores: F64, threshold: float, at: int, strokes: _Strokes) -> str:
    """Return a bar to the lowest score and on to the highest; only a score that is kept passes the mark."""
    lowest, highest = (
        max(at + 1, round(score * BAR_WIDTH)) if score >= threshold else min(at, round(score * BAR_WIDTH))
        for score in (float(scores.min()), float(scores.max()))
    )
    cells = strokes.full * lowest + strokes.range * (highest - lowest) + " " * (BAR_WIDTH - highest)
    return cells[:at] + strokes.threshold + cells[at + 1 :]


def _names(layers: npt.NDArray[np.int32]) -> str:
    return str(layers[0]) if layers.size == 1 else f"{layers[0]}-{layers[-1]}"


def _span(values: F64, form: str) -> str:
    lowest, highest = form.format(values.min()), form.format(values.max())
    return lowest if lowest == highest else f"{lowest}-{highest}"
