"""Which layers an example leaves out: by its routers, by a fixed list (the controls), or as dealt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from first_llama.train.depth import Batch, Example, Prefix
from first_llama.train.routers import LinearRouters


class MaskPolicy(Protocol):
    """Decides the layers that response rows keep; ``step`` lets a policy vary while training."""

    def __call__(self, batch: Batch, prefix: Prefix, step: int) -> Tensor | None:
        """Return bool [B, n_layer], False where a layer is skipped; None for full depth."""


class Fixed:
    """The same layers for every example."""

    def __init__(self, layers: Sequence[int], n_layer: int) -> None:
        """Take the layers to leave out."""
        self.layers, self.n_layer = sorted(layers), n_layer

    def __call__(self, batch: Batch, prefix: Prefix, step: int) -> Tensor | None:
        """Return the mask; None when nothing is left out."""
        if not self.layers:
            return None
        keep = torch.ones(len(batch.prompt), self.n_layer, dtype=torch.bool, device=batch.prompt.device)
        keep[:, self.layers] = False
        return keep


class Dealt:
    """A mask for each prompt, given beforehand."""

    def __init__(self, examples: Sequence[Example], keep: Tensor) -> None:
        """Take bool [N, n_layer], a row for each example, False where a layer is left out."""
        self.keep = {tuple(e.prompt): row for e, row in zip(examples, keep, strict=True)}

    def __call__(self, batch: Batch, prefix: Prefix, step: int) -> Tensor | None:
        """Return the masks of the batch's prompts."""
        prompts = (row[mask].tolist() for row, mask in zip(batch.prompt, batch.prompt_mask, strict=True))
        return torch.stack([self.keep[tuple(ids)] for ids in prompts])


class Routed:
    """Frozen routers on the prompt as the adapted model reads it, as the runtime scores it.

    Args:
        routers: what scores a prompt.
        thresholds: one, or several among which each step draws by seed; None is full depth.
        n_layer: layers of the model.
        seed: of the draws.
    """

    def __init__(
        self, routers: LinearRouters, thresholds: Sequence[float | None], n_layer: int, seed: int = 0
    ) -> None:
        """Take routers and thresholds."""
        self.routers, self.thresholds, self.n_layer, self.seed = routers, list(thresholds), n_layer, seed

    @torch.no_grad()
    def __call__(self, batch: Batch, prefix: Prefix, step: int) -> Tensor | None:
        """Return the mask of each example."""
        threshold = random.Random(f"threshold {self.seed} {step}").choice(self.thresholds)
        if threshold is None:
            return None
        scores = self.routers(prefix.inputs, batch.prompt_mask)
        return self.routers.keep(scores, threshold, self.n_layer)


def unified(n_layer: int, count: int) -> list[int]:
    """Return ``count`` layers to leave out so that the kept ones lie evenly, first and last among them.

    Unified Layer Skipping (arXiv 2404.06954) keeps layers at equal distances.
    """
    kept = {round(i * (n_layer - 1) / (n_layer - count - 1)) for i in range(n_layer - count)}
    return [layer for layer in range(n_layer) if layer not in kept]


def at_random(n_layer: int, count: int, seed: int) -> list[int]:
    """Return ``count`` layers drawn by seed, never the first."""
    return sorted(random.Random(f"mask {seed}").sample(range(1, n_layer), count))


def early_exit(n_layer: int, count: int) -> list[int]:
    """Return the last ``count`` layers."""
    return list(range(n_layer - count, n_layer))
