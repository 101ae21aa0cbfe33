"""Percentile bootstrap over rows (Efron 1979): how much a figure depends on which rows were drawn."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

F64: TypeAlias = npt.NDArray[np.float64]

RESAMPLES = 1000
_TAIL = 2.5  # percent left out on either side of a 95 % interval


def resampled_sums(rows: F64, seed: int) -> F64:
    """Return the column sums of resamples of the rows, drawn with replacement.

    The draws depend on the seed and the number of rows alone, so that two settings measured on the same
    rows are resampled alike and their differences are paired.

    Args:
        rows: [n, k], n >= 1.
        seed: of the draws.

    Returns:
        [RESAMPLES, k].
    """
    return np.stack([rows[chosen].sum(axis=0) for chosen in _draws(len(rows), seed)])


def median_interval(values: F64, seed: int = 0) -> tuple[float, list[float]] | None:
    """Return the median of some values with its 95 % interval; None without values."""
    if len(values) == 0:
        return None
    medians = np.array([np.median(values[chosen]) for chosen in _draws(len(values), seed)])
    return float(np.median(values)), _percentiles(medians)


def interval(draws: F64) -> list[float] | None:
    """Return the 95 % interval [low, high] of resampled figures; None if none of them is defined."""
    finite = draws[np.isfinite(draws)]
    return _percentiles(finite) if len(finite) else None


def _draws(n: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, n, n) for _ in range(RESAMPLES))


def _percentiles(values: F64) -> list[float]:
    low, high = np.percentile(values, [_TAIL, 100 - _TAIL])
    return [float(low), float(high)]
