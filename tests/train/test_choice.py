"""Looking at the routers again after stage L."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from first_llama.train.choice import Choice, reconsider
from first_llama.train.config import TrainConfig
from first_llama.train.depth import Depth
from first_llama.train.judge import judge, prompt_losses
from first_llama.train.masks import Fixed, Routed
from first_llama.train.routers import LinearRouters
from first_llama.train.run import Run
from tests.train.conftest import examples


def constant(depth: Depth, skipped: int) -> LinearRouters:
    """Routers that leave one layer out of every prompt."""
    routers = LinearRouters(range(1, depth.n_layer), depth.base.n_embd)
    with torch.no_grad():
        routers.bias.fill_(2.0)
        routers.bias[skipped - 1] = -2.0
    return routers


def test_what_serves_the_adapted_model_best_is_chosen(depth: Depth, tmp_path: Path) -> None:
    """Of two layers the one that costs less is left out, whichever stage L was trained under."""
    held = examples(5)
    run = Run(tmp_path / "run", TrainConfig(base="m.gguf", target_skip=1 / depth.n_layer))
    layers = range(1, depth.n_layer)
    losses = prompt_losses(depth, [Fixed([layer], depth.n_layer) for layer in layers], depth, held)
    costs = {layer: float(loss.mean()) for layer, loss in zip(layers, losses, strict=True)}
    cheap, dear = min(costs, key=costs.__getitem__), max(costs, key=costs.__getitem__)
    candidates = [constant(depth, dear), constant(depth, cheap)]
    before = Choice(["costs"], 0, candidates[0], 0.5, candidates=candidates)
    after = reconsider(run, depth, before, depth, held, "first")
    assert after.routers is candidates[1]
    masks = Routed(candidates[1], [after.threshold], depth.n_layer)
    assert judge(depth, masks, depth, held)["skip_fraction"] == pytest.approx(1 / depth.n_layer)
    alone = replace(before, candidates=[candidates[0]])
    assert reconsider(run, depth, alone, depth, held, "second") is alone
