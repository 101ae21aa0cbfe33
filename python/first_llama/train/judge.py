"""Held-out examples, teacher-forced, under masks: what a run reports, and what it chooses routers by.

Prompts do not depend on the mask, so they, and the teacher, are run once however many masks are judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from first_llama.train.adapt import response_logits, response_targets
from first_llama.train.batches import families_by_length
from first_llama.train.depth import Batch, Depth, Example, Prefix, collate, kl_rows
from first_llama.train.masks import MaskPolicy
from first_llama.train.routers import LinearRouters

#: Examples run at a time.
SIZE = 8


@dataclass(frozen=True)
class Pass:
    """Some of the examples.

    Attributes:
        part: which of them, B indices.
        batch: the same, padded.
        prefix: their prompts, run at full depth.
        goal: the teacher's logits [N, n_vocab] of every response token, or None.
    """

    part: list[int]
    batch: Batch
    prefix: Prefix
    goal: Tensor | None


def passes(depth: Depth, teacher: Depth | None, examples: Sequence[Example], size: int) -> Iterator[Pass]:
    """Run the prompts of all examples, and the teacher's answers."""
    order = families_by_length(examples)
    for first in range(0, len(order), size):
        part = order[first : first + size]
        batch = collate([examples[i] for i in part], depth.base.device)
        prefix, goal = depth.prompt(batch), None
        if teacher is not None:
            own = prefix if teacher is depth else teacher.prompt(batch)
            goal = response_logits(teacher, batch, own, None)
        yield Pass(part, batch, prefix, goal)


def judge(
    depth: Depth, masks: MaskPolicy, teacher: Depth | None, examples: Sequence[Example], size: int = SIZE
) -> dict[str, float]:
    """Measure held-out examples: ce, kl, accuracy, agreement, skip_fraction and rows.

    kl and agreement (share of tokens whose likeliest one is the teacher's) are over decode rows, zero
    without a teacher; ce and accuracy over all response tokens.
    """
    return judge_each(depth, [masks], teacher, examples, size)[0]


@torch.no_grad()
def judge_each(
    depth: Depth,
    policies: Sequence[MaskPolicy],
    teacher: Depth | None,
    examples: Sequence[Example],
    size: int = SIZE,
) -> list[dict[str, float]]:
    """Return ``judge`` under each of several masks."""
    names = ("ce", "accuracy", "kl", "agreement", "skipped")
    totals = [dict.fromkeys(names, 0.0) for _ in policies]
    n = rows = 0
    for found in passes(depth, teacher, examples, size):
        targets, start = response_targets(found.batch), len(found.part)
        n += len(targets)
        rows += 0 if found.goal is None else len(targets) - start
        for masks, total in zip(policies, totals, strict=True):
            keep = masks(found.batch, found.prefix, 0)
            logits = response_logits(depth, found.batch, found.prefix, keep)
            total["ce"] += float(cross_entropy(logits, targets, reduction="sum"))
            total["accuracy"] += float((logits.argmax(-1) == targets).sum())
            total["skipped"] += 0.0 if keep is None else float((~keep).sum())
            if found.goal is not None:
                goal, mine = found.goal[start:], logits[start:]
                total["kl"] += float(kl_rows(goal.log_softmax(-1), mine.log_softmax(-1)).sum())
                total["agreement"] += float((goal.argmax(-1) == mine.argmax(-1)).sum())
    layers = len(examples) * depth.n_layer
    divisors = {"ce": max(n, 1), "accuracy": max(n, 1), "kl": max(rows, 1), "agreement": max(rows, 1)}
    return [
        {
            **{name: total[name] / divisor for name, divisor in divisors.items()},
            "skip_fraction": total["skipped"] / layers,
            "rows": rows,
        }
        for total in totals
    ]


@torch.no_grad()
def prompt_losses(
    depth: Depth,
    policies: Sequence[MaskPolicy],
    teacher: Depth | None,
    examples: Sequence[Example],
    size: int = SIZE,
) -> list[Tensor]:
    """Return, for each mask, every example's mean loss [N]: the KL from a teacher, else cross-entropy."""
    out = [torch.zeros(len(examples)) for _ in policies]
    for found in passes(depth, teacher, examples, size):
        batch, device = found.batch, found.prefix.output.device
        owner = torch.cat([torch.arange(len(found.part), device=device), batch.row_mask.nonzero()[:, 0]])
        for masks, row in zip(policies, out, strict=True):
            logits = response_logits(depth, batch, found.prefix, masks(batch, found.prefix, 0))
            if found.goal is None:
                losses = cross_entropy(logits, response_targets(batch), reduction="none")
            else:
                losses = kl_rows(found.goal.log_softmax(-1), logits.log_softmax(-1))
            total = torch.zeros(len(found.part), device=device).index_add(0, owner, losses)
            row[found.part] = (total / (batch.row_mask.sum(1) + 1)).cpu()
    return out


@torch.no_grad()
def scores_of(
    depth: Depth, candidates: Sequence[LinearRouters], examples: Sequence[Example], size: int = 2 * SIZE
) -> list[Tensor]:
    """Return, for each routers, mean keep scores [N, L] of prompts, as the folded model reads them."""
    out = [torch.zeros(len(examples), len(routers.layers)) for routers in candidates]
    for found in passes(depth, None, examples, size):
        for routers, table in zip(candidates, out, strict=True):
            table[found.part] = routers(found.prefix.inputs, found.batch.prompt_mask).cpu()
    return out
