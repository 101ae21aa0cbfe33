"""Masks that are the same for every prompt: the controls, and routers that say so of each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from first_llama.train.depth import Depth, Example
from first_llama.train.evaluate_routers import Bench, greedy_fixed
from first_llama.train.masks import at_random, early_exit, unified
from first_llama.train.routers import LinearRouters
from first_llama.train.run import Run

#: Checkpoints of the best fixed mask, and of the search for it while it runs.
FIXED, SEARCH = "fixed", "fixed-search"

#: Examples on which the best fixed mask is searched; short answers say little each, so more are taken.
FEWEST, MOST = 48, 160
#: Response tokens that are enough.
ENOUGH = 1200
#: Layers that are tried after the first.
POOL = 12


def best_fixed(run: Run, depth: Depth, training: Sequence[Example]) -> list[int]:
    """Return the layers of the best fixed mask of the target's size, in the order of a greedy search."""
    found: list[int] | None = run.load(FIXED)
    if found is None:
        count = round(run.config.target_skip * depth.n_layer)
        table = search(run, depth, training, count) if count else []
        run.log("fixed", table=table)
        found = list(table[-1]["layers"]) if table else []
        run.save(FIXED, found)
    return found


def search(run: Run, depth: Depth, training: Sequence[Example], count: int) -> list[dict[str, Any]]:
    """Return the masks of 1 to ``count`` layers that a greedy search finds, saved layer by layer."""
    bench = Bench(depth, {"all": searched(training, run.config.cost_tokens)}, routed=False)
    state = run.load(SEARCH)
    if state is None:
        state = {"alone": bench.alone(), "table": []}
        run.save(SEARCH, state)
    for entry in greedy_fixed(bench, state["alone"], count, POOL, done=state["table"]):
        state["table"].append(entry)
        run.save(SEARCH, state)
    table: list[dict[str, Any]] = state["table"]
    return table


def searched(training: Sequence[Example], cost_tokens: int) -> list[Example]:
    """Return the first examples, answers cut short: as many as have enough response tokens."""
    short = [Example(e.prompt, e.response[: cost_tokens + 1]) for e in training[:MOST]]
    tokens, size = 0, 0
    while size < len(short) and (size < FEWEST or tokens < ENOUGH):
        tokens += len(short[size].response) - 1
        size += 1
    return short[:size]


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
def constant_routers(order: Sequence[int], depth: Depth, norm: str, eps: float) -> LinearRouters:
    """Return routers of just these layers, which leave them out at the threshold of one half, always.

    Args:
        order: layers; a smaller budget leaves out the first ones.
        depth: the model.
        norm: of the stand-ins beside them.
        eps: of the norm.
    """
    routers = LinearRouters(sorted(order), depth.base.n_embd, norm, eps)
    for rank, layer in enumerate(order):
        routers.bias[routers.layers.index(layer)] = rank / len(order) - 4
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
