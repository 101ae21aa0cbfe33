"""Thresholds for wanted skip fractions."""

from __future__ import annotations

import torch

from first_llama.train.calibrate import ladder, skip_fraction, threshold_for
from first_llama.train.config import LADDER


def test_threshold_gives_the_fraction() -> None:
    scores = torch.rand(200, 29, generator=torch.Generator().manual_seed(0))
    for fraction in (0.03, 0.12, 0.35, 0.9):
        found = skip_fraction(scores, threshold_for(scores, fraction, 30), 30)
        assert abs(found - fraction) < 1 / (200 * 30)


def test_ladder_is_monotone_and_inside() -> None:
    scores = torch.rand(20, 29, generator=torch.Generator().manual_seed(1)) ** 3
    rungs = ladder(scores, LADDER, 30)
    assert [fraction for fraction, _ in rungs] == list(LADDER)
    thresholds = [threshold for _, threshold in rungs]
    assert thresholds == sorted(thresholds)
    assert all(0 < threshold < 1 for threshold in thresholds)


def test_ladder_leaves_out_what_the_layers_do_not_allow() -> None:
    rungs = ladder(torch.rand(5, 2), LADDER, 10)  # at most 20 % can be skipped
    assert max(fraction for fraction, _ in rungs) < 0.2


def test_scores_at_the_edge_still_give_a_valid_threshold() -> None:
    assert 0 < threshold_for(torch.zeros(3, 4), 0.5, 5) < 1
    assert 0 < threshold_for(torch.ones(3, 4), 0.01, 5) < 1
