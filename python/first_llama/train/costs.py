"""What leaving out a layer costs a prompt: KL to full depth on its response tokens, by forward passes only.

Two savings make this cheap. A mask applies to response rows alone, so a prompt is run once for all masks.
And leaving out layer i changes nothing below it, so the pass starts at layer i from the stored hidden state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from first_llama.progress import Meter
from first_llama.train.depth import Batch, Depth, Example, Prefix, collate, kl_rows
from first_llama.train.kept import Kept

NEVER = float("inf")


class Probe:
    """One batch of examples whose teacher distributions are known, ready to be tried at reduced depth."""

    def __init__(self, depth: Depth, examples: Sequence[Example]) -> None:
        """Take a batch of examples and run it at full depth."""
        self.depth = depth
        self.batch: Batch = collate(examples, depth.base.device)
        self.owner = self.batch.row_mask.nonzero()[:, 0]
        with torch.no_grad():
            self.prefix: Prefix = depth.prompt(self.batch)
            self.teacher = self._log_probs(depth.decode(self.batch, self.prefix))

    def _log_probs(self, hidden: Tensor) -> Tensor:
        return self.depth.logits(hidden[self.batch.row_mask]).log_softmax(-1)

    def mean(self, rows: Tensor) -> Tensor:
        """Mean of row values [N] over each sequence, [B] float32 on the CPU."""
        n = self.batch.row_mask.shape[0]
        total = torch.zeros(n, device=rows.device).index_add(0, self.owner, rows)
        return (total / self.batch.row_mask.sum(1)).cpu()

    @torch.no_grad()
    def kl(self, keep: Tensor) -> Tensor:
        """KL to full depth [B] under a hard mask, bool [B, n_layer]."""
        hidden = self.depth.decode(self.batch, self.prefix, keep.to(self.batch.rows.device))
        return self.mean(kl_rows(self.teacher, self._log_probs(hidden)))

    @torch.no_grad()
    def agreement(self, keep: Tensor) -> Tensor:
        """Share of rows [B] whose likeliest token is full depth's."""
        hidden = self.depth.decode(self.batch, self.prefix, keep.to(self.batch.rows.device))
        same = self._log_probs(hidden).argmax(-1) == self.teacher.argmax(-1)
        return self.mean(same.float())

    @torch.no_grad()
    def without_each(self, keep: Tensor, candidates: Sequence[int]) -> Tensor:
        """KL [B, n_layer] of leaving out each candidate besides what the mask leaves out already.

        Args:
            keep: bool [B, n_layer], the mask so far.
            candidates: layers to try; others, and those that are out already, get infinity.
        """
        device = self.batch.rows.device
        keep = keep.to(device)
        trace: list[Tensor] = []
        self.depth.decode(self.batch, self.prefix, keep, trace=trace)
        costs = torch.full(keep.shape, NEVER, device="cpu")
        for layer in candidates:
            if not bool(keep[:, layer].any()):
                continue
            trial = keep.clone()
            trial[:, layer] = False
            hidden = self.depth.decode(self.batch, self.prefix, trial, start=layer, hidden=trace[layer])
            kl = self.mean(kl_rows(self.teacher, self._log_probs(hidden)))
            costs[:, layer] = torch.where(keep[:, layer].cpu(), kl, torch.tensor(NEVER))
        return costs


def greedy_costs(probe: Probe, rounds: int, pool: int) -> Tensor:
    """KL [rounds, B, n_layer] along each prompt's own greedy sequence of removed layers.

    Row r of a prompt: KL with its r cheapest layers (chosen one after another) and one layer more removed.
    The first round tries every layer but 0; later rounds try the ``pool`` layers that are cheapest over the
    batch and at hand, the rest stays at infinity.
    """
    n_layer, n = probe.depth.n_layer, probe.batch.rows.shape[0]
    keep = torch.ones(n, n_layer, dtype=torch.bool)
    found = []
    candidates = list(range(1, n_layer))
    for number in range(rounds):
        costs = probe.without_each(keep, candidates)
        found.append(costs)
        if number == 0:
            # Rank within each prompt, so that one hard prompt does not decide for the batch.
            rank = costs[:, 1:].argsort(1).argsort(1).float().mean(0)
            candidates = sorted((rank.argsort()[:pool] + 1).tolist())
        keep[torch.arange(n), costs.argmin(1)] = False
    return torch.stack(found)


def additive(costs: Tensor, outside: float = 1.0) -> tuple[Tensor, Tensor]:
    """Turn greedy costs [rounds, B, n_layer] into one cost a layer, [B, n_layer], and each prompt's order.

    A layer of the greedy sequence costs what it added when it was removed; a layer outside it costs what it
    adds to the whole sequence (where that was not tried, what it costs alone), times ``outside``: above 1
    that allows for what such a layer costs besides others that were never tried together. Layer 0: infinity.
    """
    rounds, n, _ = costs.shape
    rows = torch.arange(n)
    orders = costs.argmin(2)  # [rounds, B]
    reached = costs.amin(2)
    before = torch.cat([torch.zeros(1, n), reached[:-1]])
    last = costs[-1] - before[-1][:, None]
    out = outside * torch.where(last.isfinite(), torch.maximum(last, torch.zeros(())), costs[0])
    for number in range(rounds):
        out[rows, orders[number]] = (reached[number] - before[number]).clamp(min=0)
    return out, orders.T


def by_length(examples: Sequence[Example], size: int) -> Iterator[list[int]]:
    """Yield batches of indices; a batch holds examples of about the same length."""
    order = sorted(
        range(len(examples)), key=lambda i: (len(examples[i].prompt), len(examples[i].response), i)
    )
    for first in range(0, len(order), size):
        yield order[first : first + size]


def measure(
    depth: Depth, examples: Sequence[Example], path: Path, rounds: int, pool: int, batch: int, bar: Meter
) -> Tensor:
    """Measure greedy costs of all examples, [rounds, N, n_layer]; goes on with what ``path`` holds."""
    out = torch.full((rounds, len(examples), depth.n_layer), NEVER)
    with Kept(path, "kl") as kept:
        for index, rows in kept.found.items():
            out[:, index] = torch.tensor([[NEVER if v is None else v for v in row] for row in rows])
        for part in by_length(examples, batch):
            if all(index in kept.found for index in part):
                continue
            costs = greedy_costs(Probe(depth, [examples[i] for i in part]), rounds, pool)
            out[:, part] = costs
            tables = costs.transpose(0, 1).tolist()
            plain = [[[v if v != NEVER else None for v in row] for row in table] for table in tables]
            kept.add(dict(zip(part, plain, strict=True)))
            bar.advance(len(part))
    return out
