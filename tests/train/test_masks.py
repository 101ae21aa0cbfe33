"""What stage L leaves out."""

from __future__ import annotations

import pytest
import torch

from first_llama.train.depth import Depth, collate
from first_llama.train.masks import Fixed, Routed, at_random, early_exit, unified
from first_llama.train.routers import from_file
from tests.tiny_models import random_routers
from tests.train.conftest import examples


@pytest.mark.parametrize("n_layer", [6, 24, 30])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_controls_have_the_size_and_never_the_first_layer(n_layer: int, count: int) -> None:
    for layers in (unified(n_layer, count), at_random(n_layer, count, 3), early_exit(n_layer, count)):
        assert len(layers) == len(set(layers)) == count
        assert 0 not in layers
        assert layers == sorted(layers)
    assert n_layer - 1 not in unified(n_layer, count)


def test_unified_spreads_evenly() -> None:
    gaps = torch.tensor(unified(30, 5)).diff()
    assert gaps.max() - gaps.min() <= 2


def test_random_masks_differ_by_seed() -> None:
    assert len({tuple(at_random(30, 5, seed)) for seed in range(8)}) > 4


def test_fixed_is_the_same_for_all(depth: Depth) -> None:
    batch = collate(examples())
    keep = Fixed([4, 1], depth.n_layer)(batch, depth.prompt(batch), 0)
    assert keep is not None
    assert (~keep).nonzero().tolist() == [[row, layer] for row in range(3) for layer in (1, 4)]
    assert Fixed([], depth.n_layer)(batch, depth.prompt(batch), 0) is None


def test_routed_is_what_the_routers_decide(depth: Depth) -> None:
    stored = random_routers()
    routers = from_file(stored)
    batch = collate(examples())
    prefix = depth.prompt(batch)
    keep = Routed(routers, [stored.threshold], depth.n_layer)(batch, prefix, 7)
    assert keep is not None and not keep.all()
    scores = routers(prefix.inputs, batch.prompt_mask)
    assert torch.equal(keep, routers.keep(scores, stored.threshold, depth.n_layer))


def test_routed_draws_a_threshold_a_step(depth: Depth) -> None:
    policy = Routed(from_file(random_routers()), [None, 1.0], depth.n_layer, seed=2)
    batch = collate(examples())
    drawn = [policy(batch, depth.prompt(batch), step) for step in range(12)]
    again = [policy(batch, depth.prompt(batch), step) for step in range(12)]
    assert 0 < sum(keep is None for keep in drawn) < 12
    assert [keep is None for keep in drawn] == [keep is None for keep in again]
