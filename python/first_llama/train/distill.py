"""End-to-end training: distil the routed model from the same model at full depth.

The soft mixture h + p * (layer(h) - h) is annealed to the hard decision; in the second half the forward pass
takes the hard decision itself and gradients pass as through the mixture (straight-through), so that the loss
sees what the runtime does. The non-skip penalty's weight is steered until the target fraction is skipped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from first_llama.progress import Meter
from first_llama.train.costs import Probe
from first_llama.train.depth import Depth, Example, kl_rows
from first_llama.train.routers import LinearRouters


@dataclass(frozen=True)
class Distil:
    """Settings of the end-to-end stage."""

    steps: int
    batch: int
    lr: float
    target: float
    threshold: float
    seed: int
    soft: float = 0.08
    hard: float = 0.02
    steer: float = 0.05


def gates(scores: Tensor, threshold: float, temperature: float, hard: bool) -> Tensor:
    """Return how much of each layer is kept, [B, L] in (0, 1); ``hard`` gives 0 or 1 with soft gradients."""
    soft = torch.sigmoid((scores - threshold) / temperature)
    if not hard:
        return soft
    return (scores >= threshold).to(soft.dtype) + soft - soft.detach()


class Trainer:
    """Holds everything that a checkpoint of this stage must hold."""

    def __init__(self, depth: Depth, routers: LinearRouters, settings: Distil, penalty: float) -> None:
        """Start at the routers as they are, with a first non-skip penalty."""
        self.depth, self.routers, self.settings = depth, routers, settings
        self.optimiser = torch.optim.Adam(routers.parameters(), lr=settings.lr, betas=(0.9, 0.98))
        self.penalty, self.step, self.loss = penalty, 0, 0.0
        # The mean of recent weights is less noisy than the last ones.
        self.mean = {name: value.detach().clone() for name, value in routers.named_parameters()}

    def state(self) -> dict[str, Any]:
        """Return a checkpoint."""
        return {
            "routers": self.routers.state_dict(),
            "mean": self.mean,
            "optimiser": self.optimiser.state_dict(),
            "penalty": self.penalty,
            "step": self.step,
            "loss": self.loss,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.routers.load_state_dict(state["routers"])
        self.mean = state["mean"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.penalty, self.step, self.loss = state["penalty"], state["step"], state["loss"]

    def run(self, examples: Sequence[Example], bar: Meter, after: Callable[[dict[str, float]], None]) -> None:
        """Train to the last step; ``after`` gets each step's record."""
        while self.step < self.settings.steps:
            # Drawn by step, so that a resumed run sees the batches that it would have seen.
            rng = random.Random(f"distil {self.settings.seed} {self.step}")
            batch = rng.sample(list(examples), min(self.settings.batch, len(examples)))
            record = self._step(batch)
            bar.advance(1, f"loss {record['loss']:.4f} skip {record['skip']:.3f}")
            after(record)

    def _step(self, examples: Sequence[Example]) -> dict[str, float]:
        s, n_layer = self.settings, self.depth.n_layer
        done = self.step / max(s.steps - 1, 1)
        temperature = s.soft * (s.hard / s.soft) ** min(2 * done, 1.0)
        probe = Probe(self.depth, examples)
        scores = self.routers(probe.prefix.inputs, probe.batch.prompt_mask)
        kept = gates(scores, s.threshold, temperature, hard=done >= 0.5)
        hidden = self.depth.decode(probe.batch, probe.prefix, self.routers.spread(kept, n_layer))
        student = self.depth.logits(hidden[probe.batch.row_mask]).log_softmax(-1)
        kl = kl_rows(probe.teacher, student)
        count = probe.batch.row_mask.sum(1)
        loss = (kl / count[probe.owner]).sum() / len(examples)
        total = loss + self.penalty * kept.sum(1).mean()
        for group in self.optimiser.param_groups:
            group["lr"] = s.lr * (1 - 0.9 * done)
        self.optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        skip = float((1 - kept.detach()).sum(1).mean()) / n_layer
        # An integral controller: too few layers skipped makes keeping a layer dearer.
        self.penalty = max(self.penalty + s.steer * self.penalty * (s.target - skip) / s.target, 1e-4)
        with torch.no_grad():
            for name, value in self.routers.named_parameters():
                self.mean[name].lerp_(value, max(0.05, 1 / (self.step + 1)))
        self.step += 1
        self.loss = float(loss.detach())
        return {"step": self.step, "loss": self.loss, "skip": skip, "penalty": self.penalty}

    def averaged(self) -> LinearRouters:
        """Return the routers with averaged weights."""
        with torch.no_grad():
            for name, value in self.routers.named_parameters():
                value.copy_(self.mean[name])
        return self.routers
