"""Masks that are the same for every prompt: the controls, and routers that say so of each prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from first_llama.train.depth import Depth, Example
from first_llama.train.evaluate_routers import Bench, greedy_fixed
from first_llama.train.masks import at_random, early_exit, unified
from first_llama.train.routers import LinearRouters
from first_llama.train.run import Run

#: Checkpoint of the best fixed mask.
FIXED = "fixed"

#: Examples on which the best fixed mask is searched.
SEARCH = 48
SEARCH_POOL = 12


def best_fixed(run: Run, depth: Depth, training: Sequence[Example]) -> list[int]:
    """Return the layers of the best fixed mask of the target's size, in the order of a greedy search."""
    config = run.config
    found: list[int] | None = run.load(FIXED)
    if found is None:
        short = [Example(e.prompt, e.response[: config.cost_tokens + 1]) for e in training[:SEARCH]]
        count = round(config.target_skip * depth.n_layer)
        bench = Bench(depth, {"all": short})
        table = greedy_fixed(bench, bench.alone(), count, SEARCH_POOL) if count else []
        run.log("fixed", table=table)
        found = list(table[-1]["layers"]) if table else []
        run.save(FIXED, found)
    return found


def fixed_layers(run: Run, depth: Depth, training: Sequence[Example]) -> list[int]:
    """Return the layers that a control leaves out for every prompt: as many as the target fraction says."""
    config, n_layer = run.config, depth.n_layer
    count = round(config.target_skip * n_layer)
    if config.mask == "unified":
        return unified(n_layer, count)
    if config.mask == "random":
        return at_random(n_layer, count, config.seed)
    if config.mask == "early-exit":
        return early_exit(n_layer, count)
    if config.mask == "off":
        return []
    return sorted(best_fixed(run, depth, training))


@torch.no_grad()
def constant_routers(layers: Sequence[int], depth: Depth, norm: str, eps: float) -> LinearRouters:
    """Return routers that leave out just these layers, at the threshold of one half, whatever the prompt."""
    routers = LinearRouters(range(1, depth.n_layer), depth.base.n_embd, norm, eps, start=0.98)
    for layer in layers:
        routers.bias[layer - 1] = -4.0
    return routers


@torch.no_grad()
def common_routers(like: LinearRouters, order: Sequence[int]) -> LinearRouters:
    """Return routers that leave out the same layers for every prompt, those of ``order`` first.

    Args:
        like: routers whose bias ranks the layers that come after these, and whose form is taken.
        order: layers, the first one left out first.
    """
    routers = LinearRouters(like.layers, like.weight.shape[1], like.norm, like.eps).to(like.weight.device)
    bias = like.bias.clone()
    lowest = float(bias.min())
    for rank, layer in enumerate(reversed(order), start=1):
        bias[like.layers.index(layer)] = lowest - rank / 4
    routers.bias.copy_(bias)
    return routers
