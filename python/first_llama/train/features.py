"""Layer inputs of all training prompts, kept in memory so that fitting routers never runs the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from first_llama.progress import Meter
from first_llama.train.depth import Depth, Example, collate
from first_llama.train.routers import LinearRouters


class Features:
    """Normalised layer inputs, bfloat16 [L, T, n_embd]; the tokens of N prompts lie one after another.

    It takes 2 * L * n_embd bytes a prompt token: 33 kB for SmolLM2-135M.
    """

    def __init__(self, values: Tensor, owner: Tensor, count: Tensor) -> None:
        """Take features [L, T, n_embd], each token's prompt [T], and the tokens of each prompt [N]."""
        self.values, self.owner, self.count = values, owner, count

    def scores(self, routers: LinearRouters) -> Tensor:
        """Return mean keep scores of all prompts, float32 [N, L]."""
        weight = routers.weight.to(self.values.dtype)
        logits = torch.bmm(self.values, weight[:, :, None])[:, :, 0].float() + routers.bias[:, None]
        total = torch.zeros(len(self.count), logits.shape[0], device=logits.device)
        return total.index_add(0, self.owner, torch.sigmoid(logits).T) / self.count[:, None]


@torch.no_grad()
def collect(
    depth: Depth, routers: LinearRouters, examples: Sequence[Example], batch: int, bar: Meter
) -> Features:
    """Run all prompts at full depth and keep what the routers read."""
    device = depth.base.device
    count = torch.tensor([len(example.prompt) for example in examples], device=device)
    ends = count.cumsum(0)
    total = int(ends[-1])
    values = torch.empty(len(routers.layers), total, depth.base.n_embd, dtype=torch.bfloat16, device=device)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].prompt))
    for first in range(0, len(order), batch):
        part = order[first : first + batch]
        group = collate([examples[i] for i in part], device)
        inputs = depth.prompt(group).inputs
        for row, layer in enumerate(routers.layers):
            x = routers.normalise(inputs[layer]).to(values.dtype)
            for b, index in enumerate(part):
                n, end = len(examples[index].prompt), int(ends[index])
                values[row, end - n : end] = x[b, group.prompt_mask[b]]
        bar.advance(len(part))
    owner = torch.repeat_interleave(torch.arange(len(examples), device=device), count)
    return Features(values, owner, count)
