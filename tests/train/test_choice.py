"""Looking at the routers again after stage L."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from first_llama.train.adapt import judge, prompt_losses
from first_llama.train.choice import Choice, reconsider
from first_llama.train.config import TrainConfig
from first_llama.train.depth import Depth
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


@pytest.mark.parametrize("distil", [False, True])
def test_prompt_losses_are_what_judge_sums(depth: Depth, distil: bool) -> None:
    held = examples(5)
    masks = Fixed([2, 3], depth.n_layer)
    losses = prompt_losses(depth, masks, depth if distil else None, held, size=2)
    judged = judge(depth, masks, depth, held)
    n = torch.tensor([len(e.response) for e in held], dtype=torch.float32)
    if distil:  # the first token comes from full depth, and its KL of zero is not counted by judge
        assert float((losses * n).sum() / (n - 1).sum()) == pytest.approx(judged["kl"], rel=1e-3)
    else:
        assert float((losses * n).sum() / n.sum()) == pytest.approx(judged["ce"], rel=1e-4)


def test_what_serves_the_adapted_model_best_is_chosen(depth: Depth, tmp_path: Path) -> None:
    """Of two layers the one that costs less is left out, whichever stage L was trained under."""
    held = examples(5)
    run = Run(tmp_path / "run", TrainConfig(base="m.gguf", target_skip=1 / depth.n_layer))
    costs = {
        layer: float(prompt_losses(depth, Fixed([layer], depth.n_layer), depth, held).mean())
        for layer in range(1, depth.n_layer)
    }
    cheap, dear = min(costs, key=costs.__getitem__), max(costs, key=costs.__getitem__)
    candidates = [constant(depth, dear), constant(depth, cheap)]
    before = Choice(["costs"], 0, candidates[0], 0.5, candidates=candidates)
    after = reconsider(run, depth, before, depth, held, "first")
    assert after.routers is candidates[1]
    masks = Routed(candidates[1], [after.threshold], depth.n_layer)
    assert judge(depth, masks, depth, held)["skip_fraction"] == pytest.approx(1 / depth.n_layer)
    alone = replace(before, candidates=[candidates[0]])
    assert reconsider(run, depth, alone, depth, held, "second") is alone
