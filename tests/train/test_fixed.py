"""Masks that are the same for every prompt, and routers that say so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from first_llama.train.calibrate import threshold_for
from first_llama.train.config import TrainConfig
from first_llama.train.depth import Depth, Example
from first_llama.train.evaluate_routers import Bench, cheapest, greedy_fixed
from first_llama.train.fixed import (
    ENOUGH,
    FEWEST,
    MOST,
    common_routers,
    constant_routers,
    fixed_layers,
    searched,
)
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


def test_a_stopped_search_goes_on(depth: Depth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was tried before it was stopped is not tried again, and the mask is that of a search in one go."""
    config = TrainConfig(base="x", mask="fixed", target_skip=0.5)
    whole = fixed_layers(Run(tmp_path / "whole", config), depth, examples())
    passes = Bench.without_each
    left = [2]

    def stopped(bench: Bench, keep: torch.Tensor, candidates: Sequence[int]) -> torch.Tensor:
        if not left[0]:
            raise RuntimeError("stopped")
        left[0] -= 1
        return passes(bench, keep, candidates)

    monkeypatch.setattr(Bench, "without_each", stopped)
    run = Run(tmp_path / "part", config)
    with pytest.raises(RuntimeError, match="stopped"):
        fixed_layers(run, depth, examples())
    assert len(whole) == 3
    left[0] = 1  # the third layer's pass alone
    assert fixed_layers(run, depth, examples()) == whole


def test_short_answers_are_searched_on_more_prompts() -> None:
    """As many as have enough tokens to say what a layer is worth, between the fewest and the most."""
    for length, expected in ((1, MOST), (ENOUGH // 80, 80), (ENOUGH, FEWEST)):
        rows = [Example([1, 2], [3] * (length + 1))] * (MOST + 5)
        found = searched(rows, cost_tokens=ENOUGH)
        assert len(found) == expected
        assert len(found) in (MOST, FEWEST) or sum(len(e.response) - 1 for e in found) == ENOUGH
    assert len(searched([Example([1], [2, 3])] * 5, 24)) == 5
    assert {len(e.response) for e in searched([Example([1], [2] * 100)] * 5, 24)} == {25}


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
    masks = list(greedy_fixed(bench, alone, 3, 12, bench.task))
    assert tried == [depth.n_layer - 1, *[len(cheapest(alone, bench.task, 12))] * 2]
    for name, some in both.items():
        single = Bench(depth, {name: some})
        table = list(greedy_fixed(single, single.alone(), 3, 12))
        assert [entry["layers"] for entry in table] == [entry["layers"][name] for entry in masks]
        assert [entry["kl"] for entry in table] == [
            pytest.approx(entry["kl_by_task"][name], abs=2e-4) for entry in masks
        ]


def test_constant_routers_leave_out_all_their_layers_or_the_first_ones(depth: Depth) -> None:
    order = [4, 1, 3]
    routers = constant_routers(order, depth, "rms", 1e-5)
    scores = scores_of(depth, [routers], examples())[0]
    for count in (1, 2, 3):
        threshold = threshold_for(scores, count / depth.n_layer, depth.n_layer)
        for row in routers.keep(scores, threshold, depth.n_layer):
            assert (~row).nonzero()[:, 0].tolist() == sorted(order[:count])
    assert not routers.keep(scores, 0.5, depth.n_layer)[:, order].any()


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
