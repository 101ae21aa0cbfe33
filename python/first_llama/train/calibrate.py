"""Thresholds for wanted skip fractions, from the mean scores of held-out prompts."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

#: A threshold lies strictly inside (0, 1); scores are float32.
EDGE = 1e-6


def threshold_for(scores: Tensor, fraction: float, n_layer: int) -> float:
    """Return the threshold at which prompts skip ``fraction`` of all n_layer layers on average.

    Args:
        scores: mean keep scores [N, L] of N prompts.
        fraction: wanted mean share of the n_layer layers, in (0, 1).
        n_layer: layers of the model, the never skipped ones included.
    """
    values = scores.detach().flatten().sort().values.double()
    skipped = min(max(round(fraction * n_layer * scores.shape[0]), 0), len(values))
    low = float(values[skipped - 1]) if skipped > 0 else 0.0
    high = float(values[skipped]) if skipped < len(values) else 1.0
    return min(max((low + high) / 2, EDGE), 1 - EDGE)


def ladder(scores: Tensor, fractions: Iterable[float], n_layer: int) -> list[tuple[float, float]]:
    """Return (fraction, threshold) for ascending fractions that the skippable layers allow; never falling."""
    most = scores.shape[1] / n_layer
    out: list[tuple[float, float]] = []
    for fraction in sorted(fractions):
        if fraction < most:
            threshold = threshold_for(scores, fraction, n_layer)
            out.append((fraction, max(threshold, out[-1][1] if out else 0.0)))
    return out


def skip_fraction(scores: Tensor, threshold: float, n_layer: int) -> float:
    """Return the mean share of all layers that the threshold skips."""
    return float((scores < threshold).sum(1).float().mean()) / n_layer
