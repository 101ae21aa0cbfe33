"""Choosing among routers by held-out losses: the simplest that are no worse (the one standard error rule).

With few prompts strong weights fit noise: every prompt gets a mask of its own that is no better than a common
one, and an adapter under many masks learns each of them less.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def no_worse(losses: Tensor, others: Tensor) -> bool:
    """Tell whether losses [N] are on average at most one standard error of the differences above others."""
    difference = losses - others
    error = float(difference.std()) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return bool(difference.mean() <= error)


def simplest(candidates: Sequence[Tensor]) -> int:
    """Return the first of some losses [N], simplest candidate first, that is no worse than the best."""
    best = min(candidates, key=lambda losses: float(losses.mean()))
    return next(i for i, losses in enumerate(candidates) if no_worse(losses, best))
