"""Masks that are the same for every prompt, and routers that say so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from first_llama.train.calibrate import threshold_for
from first_llama.train.config import TrainConfig
from first_llama.train.depth import Depth
from first_llama.train.evaluate_routers import Bench, cheapest, greedy_fixed
from first_llama.train.fixed import common_routers, fixed_layers
from first_llama.train.judge import scores_of
from first_llama.train.routers import LinearRouters
from first_llama.train.run import Run
from tests.train.conftest import examples


def test_the_best_fixed_mask_is_searched_once(depth: Depth, tmp_path: Path) -> None:
    """It is the greedy one: its first layer costs least alone, and a stopped run takes what it found."""
    run = Run(tmp_path, TrainConfig(base="x", mask="fixed", target_skip=0.34))
    found = fixed_layers(run, depth, examples())
    assert len(found) == 2 and 0 not in found
    assert fixed_layers(run, depth, []) == found
    single = Run(tmp_path / "one", TrainConfig(base="x", mask="fixed", target_skip=0.17))
    assert fixed_layers(single, depth, examples())[0] in found


def test_a_share_of_less_than_half_a_layer_leaves_out_none(depth: Depth, tmp_path: Path) -> None:
    run = Run(tmp_path, TrainConfig(base="x", mask="fixed", target_skip=0.01))
    assert fixed_layers(run, depth, examples()) == []


def test_the_search_tries_each_size_once(depth: Depth) -> None:
    """Groups of their own come to what each finds alone; one group is no other search than all."""
    tried: list[int] = []

    class Counting(Bench):
        def without_each(self, keep: torch.Tensor, candidates: Sequence[int]) -> torch.Tensor:
            tried.append(len(candidates))
            return super().without_each(keep, candidates)

    both = {"a": examples()[:2], "b": examples()[2:]}
    bench = Counting(depth, both)
    alone = bench.alone()
    masks = greedy_fixed(bench, alone, 3, 12, bench.task)
    assert tried == [depth.n_layer - 1, *[len(cheapest(alone, bench.task, 12))] * 2]
    for name, some in both.items():
        single = Bench(depth, {name: some})
        table = greedy_fixed(single, single.alone(), 3, 12)
        assert [entry["layers"] for entry in table] == [entry["layers"][name] for entry in masks]
        assert [entry["kl"] for entry in table] == [
            pytest.approx(entry["kl_by_task"][name], abs=2e-4) for entry in masks
        ]


def test_common_routers_leave_out_the_same_layers_first_ones_first(depth: Depth) -> None:
    """Whatever the prompt; beyond the given layers those follow that cost least by the bias."""
    like = LinearRouters(range(1, depth.n_layer), depth.base.n_embd)
    torch.nn.init.normal_(like.weight)
    with torch.no_grad():
        like.bias.copy_(torch.arange(len(like.layers)).float())  # layer 1 is the cheapest
    common = common_routers(like, [4, 2])
    scores = scores_of(depth, [common], examples())[0]
    assert len(scores) > 2
    for wanted in ([4], [4, 2], [4, 2, 1], [4, 2, 1, 3]):
        threshold = threshold_for(scores, len(wanted) / depth.n_layer, depth.n_layer)
        keep = common.keep(scores, threshold, depth.n_layer)
        for row in keep:
            assert (~row).nonzero()[:, 0].tolist() == sorted(wanted)
