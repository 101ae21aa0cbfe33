"""Fitting routers with several penalties, and judging them on held-out prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from first_llama.train.config import TrainConfig
from first_llama.train.costs import Probe
from first_llama.train.depth import Depth
from first_llama.train.routers import LinearRouters
from first_llama.train.run import Run
from first_llama.train.stage_r import HeldOut, penalties, warm_start
from tests.train.conftest import examples


def test_candidates_are_judged_as_each_alone(depth: Depth) -> None:
    held = examples(5)
    candidates = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        routers = LinearRouters(range(1, depth.n_layer), depth.base.n_embd)
        torch.nn.init.normal_(routers.weight, std=0.3)
        candidates.append(routers)
    judge = HeldOut(depth, held, 0.2)
    together = judge.compare(candidates)
    for routers, found in zip(candidates, together, strict=True):
        alone = judge(routers)
        assert torch.equal(alone.scores, found.scores) and alone.threshold == found.threshold
        keep = routers.keep(found.scores, found.threshold, depth.n_layer)
        order = sorted(range(5), key=lambda i: len(held[i].prompt))
        kls = Probe(depth, [held[i] for i in order]).kl(keep[order])
        torch.testing.assert_close(found.kls[order], kls, atol=1e-5, rtol=1e-4)
        assert found.kl == pytest.approx(float(kls.mean()), rel=1e-4)
    assert not torch.equal(together[0].kls, together[1].kls)


def test_a_larger_penalty_makes_smaller_weights_and_a_fit_is_not_done_twice(
    depth: Depth, tmp_path: Path
) -> None:
    config = TrainConfig(base="m.gguf", l2=(0.001, 10.0, 0.1), fit_steps=40)
    assert penalties(config) == [10.0, 0.1, 0.001]
    run, training = Run(tmp_path / "run", config), examples(5)
    table = torch.rand(5, depth.n_layer - 1, generator=torch.Generator().manual_seed(0))
    first = warm_start(run, depth, training, table)
    sizes = [float(routers.weight.detach().norm()) for routers in first]
    assert sizes == sorted(sizes) and sizes[0] < 0.5 * sizes[2]
    again = warm_start(run, depth, training, 1 - table)  # what is stored counts
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)
