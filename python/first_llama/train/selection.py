"""Choosing among routers by held-out losses: the simplest that are no worse (the one standard error rule).

With few prompts strong weights fit noise: every prompt gets a mask of its own that is no better than a common
one, and an adapter under many masks learns each of them less.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def no_worse(losses: Tensor, others: Tensor, kinds: Sequence[str]) -> bool:
    """Tell whether losses [N] are on average at most one standard error of the differences above others.

    Prompts are a stratified sample by their tasks (Cochran, Sampling Techniques, section 5.3): that one task
    gains and another loses is no chance, so only how differences scatter within a task counts. Tasks with one
    prompt count as one task.
    """
    difference = losses - others
    scatter = 0.0
    for part in strata(kinds):
        scatter += len(part) * float(difference[part].var()) if len(part) > 1 else 0.0
    return bool(difference.mean() <= scatter**0.5 / len(difference))


def strata(kinds: Sequence[str]) -> list[Tensor]:
    """Return the prompts of each task, as indices; those that are alone in theirs come together."""
    found: dict[str, list[int]] = {}
    for i, kind in enumerate(kinds):
        found.setdefault(kind, []).append(i)
    alone = [part[0] for part in found.values() if len(part) == 1]
    parts = [part for part in found.values() if len(part) > 1] + ([alone] if alone else [])
    return [torch.tensor(part) for part in parts]


def simplest(candidates: Sequence[Tensor], kinds: Sequence[str]) -> int:
    """Return the first of some losses [N], simplest candidate first, that is no worse than the best.

    Args:
        candidates: each prompt's loss.
        kinds: each prompt's task.
    """
    best = min(candidates, key=lambda losses: float(losses.mean()))
    return next(i for i, losses in enumerate(candidates) if no_worse(losses, best, kinds))
