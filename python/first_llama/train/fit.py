"""The warm start: routers that read from a prompt what leaving out each layer would cost it.

The scores are regressed on log costs, so that a score of one half lies at the price of a layer. Only features
and measured costs are seen, so this takes no pass through the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from first_llama.progress import Meter
from first_llama.train.calibrate import threshold_for
from first_llama.train.features import Features
from first_llama.train.routers import LinearRouters

#: Costs below this (nats a token) are noise.
FLOOR = 2e-3


@dataclass(frozen=True)
class Fit:
    """Settings of the warm start."""

    fraction: float
    n_layer: int
    steps: int
    lr: float
    l2: float
    softness: float = 0.7


def price(costs: Tensor, fraction: float, n_layer: int) -> float:
    """Return the cost below which a layer is worth skipping so that ``fraction`` of n_layer is skipped."""
    values = costs.flatten().sort().values
    index = min(max(round(fraction * n_layer * costs.shape[0]), 1), len(values) - 1)
    return max(float(values[index]), FLOOR)


def fit(routers: LinearRouters, features: Features, costs: Tensor, settings: Fit, bar: Meter) -> None:
    """Train the routers in place.

    Args:
        routers: the module.
        features: of N prompts.
        costs: [N, L], cost of leaving each skippable layer out, in nats a token.
        settings: how.
        bar: advances by one a step.
    """
    lam = price(costs, settings.fraction, settings.n_layer)
    log_cost = costs.clamp(min=FLOOR, max=10.0).log()
    target = torch.sigmoid((log_cost - torch.log(torch.tensor(lam))) / settings.softness)
    # Start where a constant score per layer is right: the weights then learn only what differs.
    with torch.no_grad():
        routers.bias.copy_(torch.logit(target.mean(0).clamp(0.02, 0.98)))
    optimiser = torch.optim.Adam(routers.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps, settings.lr / 20)
    for _ in range(settings.steps):
        scores = features.scores(routers)
        loss = functional.binary_cross_entropy(scores.clamp(1e-4, 1 - 1e-4), target)
        penalty = settings.l2 * routers.weight.pow(2).sum(1).mean()
        optimiser.zero_grad()
        (loss + penalty).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        bar.advance(1, f"loss {float(loss.detach()):.4f}")


def expected(scores: Tensor, costs: Tensor, fraction: float, n_layer: int) -> float:
    """Additive cost a prompt of the layers skipped at ``fraction``: an estimate of KL that needs no model."""
    threshold = threshold_for(scores, fraction, n_layer)
    return float(((scores < threshold) * costs.clamp(max=2.0)).sum(1).mean())
