"""The runtime's method in plain PyTorch, token by token: what a C++ run and Depth's one pass must equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from first_llama.convert import routers as files
from first_llama.train import stand_ins
from first_llama.train.depth import Depth, Example, GrowingCache, collate
from first_llama.train.gguf_model import Base
from first_llama.train.routers import from_file


@dataclass(frozen=True)
class Routed:
    """What the method gives for one prompt and a forced continuation.

    Attributes:
        scores: mean keep scores [L] over the prompt, one for each skippable layer.
        skipped: the layers left out, ascending.
        logits: [T, n_vocab], after each of the T forced tokens.
    """

    scores: Tensor
    skipped: list[int]
    logits: Tensor


@torch.no_grad()
def prompt_scores(depth: Depth, routers: files.Routers, prompt: Sequence[int]) -> Tensor:
    """Return mean keep scores [L] of a prompt run at full depth."""
    batch = collate([Example(list(prompt), [0, 0])], depth.base.device)
    scores: Tensor = from_file(routers)(depth.prompt(batch).inputs, batch.prompt_mask)
    return scores[0]


def choose(routers: files.Routers, scores: Tensor, fraction: float | None = None) -> list[int]:
    """Return the skipped layers: below the threshold, or the lowest up to a fraction of all layers."""
    layers = routers.layers.tolist()
    if fraction is None:
        pairs = zip(layers, scores.tolist(), strict=True)
        return [layer for layer, score in pairs if score < routers.threshold]
    count = min(int(fraction * routers.block_count + 1e-4), len(layers))
    return sorted(layers[i] for i in scores.argsort(stable=True)[:count].tolist())


@torch.no_grad()
def decode(depth: Depth, prompt: Sequence[int], forced: Sequence[int], skipped: Sequence[int]) -> Tensor:
    """Return logits [T, n_vocab] of T decode steps that read the forced tokens.

    A skipped layer passes its input on, or its stand-in's output; it is run all the same, because that stores
    K and V of the bypassed state, and its output is dropped.
    """
    device = depth.base.device
    batch = collate([Example(list(prompt), [0, 0])], device)
    cache = GrowingCache(depth.prompt(batch).cache, len(forced))
    logits = []
    for number, token in enumerate(forced):
        position = torch.tensor([[len(prompt) + number]], device=device)
        keys = torch.arange(len(prompt) + number + 1, device=device)[None]
        hidden = depth.decoder.embed(torch.tensor([[token]], device=device))
        context = depth.context(hidden, position, keys, torch.ones_like(keys, dtype=torch.bool)[:, None])
        for layer in range(depth.n_layer):
            full = depth.layer(layer, hidden, context, cache)
            hidden = depth.without(layer, hidden) if layer in skipped else full
        cache.length += 1
        logits.append(depth.logits(hidden)[0, 0])
    return torch.stack(logits)


def run(
    base: Base,
    routers: files.Routers,
    prompt: Sequence[int],
    forced: Sequence[int],
    fraction: float | None = None,
) -> Routed:
    """Route a prompt and decode a forced continuation.

    Args:
        base: the model, in float32 for comparisons.
        routers: read from a run's folder or made by hand.
        prompt: token ids.
        forced: token ids that decode steps read.
        fraction: a budget in place of the threshold.
    """
    depth = Depth(base)
    depth.stand_in = stand_ins.from_file(routers, base.device)
    scores = prompt_scores(depth, routers, prompt)
    skipped = choose(routers, scores, fraction)
    return Routed(scores, skipped, decode(depth, prompt, forced, skipped))
